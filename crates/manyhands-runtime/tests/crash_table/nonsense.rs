//! Workers that write nonsense.

use crate::crash_table::blocks::{around, echoes};
use crate::crash_table::case::Case;
use crate::crash_table::helpers::{until_stats, warm};
use crate::crash_table::site::Site;
use crate::crash_table::stream::Items;
use manyhands_runtime::Cause;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario("a worker writes nonsense", "its parent goes on", nonsense),
        scenario(
            "a worker writes nonsense in a block",
            "its parent kills it and goes on",
            nonsense_in_a_block,
        ),
        scenario(
            "a worker writes a queue word in a block",
            "its parent goes on",
            queue_word_in_a_block,
        ),
    ]
}

/// Whatever a worker writes, its parent goes on: what the worker held ends or runs elsewhere.
fn nonsense(site: &Site) {
    let pool = site.pool(2);
    for word in [
        "tail", "record", "short", "number", "file", "kind", "lap", "queue", "ask", "release",
    ] {
        warm(site, &pool);
        let mut jobs = site.submit_echoes(&pool, 20);
        jobs.push(site.submit(&pool, &format!("scribble:{word}")));
        jobs.extend(site.submit_echoes(&pool, 20));
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
    assert_eq!(site.finish(pool).deaths, 10);
}

/// What the worker had published is there, the item that wrote it is lost unless it had a result, and
/// the rest runs elsewhere.
fn nonsense_in_a_block(site: &Site) {
    let pool = site.pool(2);
    for (ordered, what) in [
        (true, "tail"),
        (false, "record"),
        (true, "short"),
        (false, "number"),
        (true, "file"),
        (false, "kind"),
        (true, "lap"),
        (false, "item"),
        // These give the item a result before the nonsense.
        (true, "items"),
        (false, "yields"),
        (true, "unstarted"),
    ] {
        warm(site, &pool);
        let mut items = Items::new(ordered);
        let commands = around(5, &format!("scribble:{what}"), 30);
        items.send(site, &pool, &commands);
        items.send(site, &pool, &echoes(10));
        if what == "unstarted" {
            items.expect_error(5, "");
        }
        let tally = items.settle(site, &pool);
        match what {
            // What it had published and nobody had read is lost with the word.
            "tail" => {
                assert_eq!(tally.values + tally.died.len(), 46, "{tally:?}");
                assert!((1..=6).contains(&tally.died.len()), "{tally:?}");
            }
            "items" | "yields" | "unstarted" => assert_eq!(tally.values, 46, "{what}"),
            _ => {
                assert_eq!(
                    (tally.values, tally.died.len()),
                    (45, 1),
                    "{what}: {tally:?}"
                );
                let (number, _, cause) = tally.died[0];
                assert_eq!(
                    (number, cause),
                    (items.number(5), Cause::Protocol),
                    "{what}"
                );
            }
        }
        site.assert_usable(&pool);
    }
    until_stats(&pool, |stats| stats.deaths == 11);
    assert_eq!(site.finish(pool).deaths, 11);
}

/// Who knows what such a worker ran: all that it held may be lost, and everything ends.
fn queue_word_in_a_block(site: &Site) {
    let pool = site.pool(2);
    for ordered in [true, false] {
        warm(site, &pool);
        let mut items = Items::new(ordered);
        items.send(site, &pool, &around(5, "scribble:queue", 3000));
        let tally = items.settle(site, &pool);
        assert!(!tally.died.is_empty());
        assert_eq!(tally.values + tally.died.len(), 3006);
        site.assert_usable(&pool);
    }
    assert_eq!(site.finish(pool).deaths, 2);
}
