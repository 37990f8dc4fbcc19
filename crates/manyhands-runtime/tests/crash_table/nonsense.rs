//! Workers that write nonsense.

use crate::crash_table::case::Case;
use crate::crash_table::site::{Job, Site};
use manyhands_runtime::Cause;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![scenario(
        "a worker writes nonsense",
        "its parent goes on",
        nonsense,
    )]
}

/// Whatever a worker writes, its parent goes on: what the worker held ends or runs elsewhere.
fn nonsense(site: &Site) {
    let pool = site.pool(2);
    for word in ["tail", "record", "queue"] {
        let warm: Vec<Job> = (0..40).map(|_| site.submit(&pool, "echo:warm")).collect();
        assert_eq!(site.settle(&pool, &warm).values, 40);
        let mut jobs: Vec<Job> = (0..20)
            .map(|i| site.submit(&pool, &format!("echo:{i}")))
            .collect();
        jobs.push(site.submit(&pool, &format!("scribble:{word}")));
        jobs.extend((0..20).map(|i| site.submit(&pool, &format!("echo:{i}"))));
        let tally = site.settle(&pool, &jobs);
        let lost = tally.died.len();
        assert!(lost >= 1, "{word}: {tally:?}");
        assert_eq!(tally.values, 41 - lost, "{word}: {tally:?}");
        // What it had finished and nobody had read is lost with the word.
        let protocol = tally
            .died
            .iter()
            .all(|(_, _, cause)| *cause == Cause::Protocol);
        assert!(word == "queue" || protocol, "{word}: {tally:?}");
        site.assert_usable(&pool);
    }
    assert_eq!(site.finish(pool).deaths, 3);
}
