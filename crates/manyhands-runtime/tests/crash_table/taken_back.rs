//! Tasks that are taken back from workers: cancelled, or given to another.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{cancel_waiting, submit_blocker, warm};
use crate::crash_table::site::{Job, Site};
use manyhands_runtime::{Definition, Pool};

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "cancel, queued and published",
            "cancelled tasks never run",
            cancelling,
        ),
        scenario(
            "cancel, large arguments",
            "no task gets another's arguments",
            large_arguments_taken_back,
        ),
        scenario(
            "cancel, hundreds of large ones",
            "the next one comes through",
            many_large_taken_back,
        ),
        scenario(
            "cancel, definitions",
            "who needs them still gets them",
            definitions_taken_back,
        ),
        scenario(
            "steal, large arguments",
            "no task gets another's arguments",
            large_arguments_stolen,
        ),
    ]
}

fn cancelling(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let blocker = submit_blocker(site, &pool, "go");
    let jobs = site.submit_echoes(&pool, 3000);
    let waiting = pool.stats().workers[0].waiting;
    assert!(
        (1..3000).contains(&waiting),
        "{waiting}: some published, some queued"
    );
    assert!(!cancel_waiting(&pool, &blocker.task), "it runs");
    let chosen = [0, 1, 7, 8, waiting - 1, waiting, waiting + 1, 2998, 2999];
    for index in chosen {
        assert!(cancel_waiting(&pool, &jobs[index].task));
        assert!(
            cancel_waiting(&pool, &jobs[index].task),
            "it stays cancelled"
        );
    }
    site.touch("go");
    let tally = site.settle(&pool, &jobs);
    tally.assert_cancelled(3000 - chosen.len(), chosen.len());
    let order: Vec<u64> = site.run_order().iter().map(|(number, _)| *number).collect();
    assert!(
        order.is_sorted(),
        "what was taken back returned to its place"
    );
    assert!(!cancel_waiting(&pool, &jobs[3].task), "it has ended");
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn large_arguments_taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let blocker = submit_blocker(site, &pool, "go");
    let jobs: Vec<Job> = (0..6)
        .map(|i| site.submit_bytes(&pool, 100_000 + i / 2))
        .collect();
    assert!(cancel_waiting(&pool, &jobs[0].task));
    assert!(cancel_waiting(&pool, &jobs[3].task));
    site.touch("go");
    site.settle(&pool, &jobs).assert_cancelled(4, 2);
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn many_large_taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    for round in 0..2 {
        let file = format!("go{round}");
        let blocker = submit_blocker(site, &pool, &file);
        for _ in 0..400 {
            let job = site.submit_bytes(&pool, 50_000);
            assert!(cancel_waiting(&pool, &job.task));
        }
        let jobs: Vec<Job> = (0..5)
            .map(|i| site.submit_bytes(&pool, 60_000 + i))
            .collect();
        site.touch(&file);
        assert_eq!(site.settle(&pool, &jobs).values, 5);
        assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    }
    site.finish(pool);
}

fn definitions_taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let base = Definition::new("base", Box::from(&b"base"[..]), Box::from([]));
    let large = Definition::new("large", vec![7; 70_000].into(), Box::from([base.clone()]));
    for definition in [&base, &large] {
        let file = format!("go{}", definition.id());
        let blocker = submit_blocker(site, &pool, &file);
        let jobs: Vec<Job> = (0..5)
            .map(|_| site.submit_definition(&pool, definition))
            .collect();
        assert!(
            cancel_waiting(&pool, &jobs[0].task),
            "the one that carries the definition"
        );
        assert!(cancel_waiting(&pool, &jobs[2].task));
        site.touch(&file);
        site.settle(&pool, &jobs).assert_cancelled(3, 2);
        assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    }
    site.finish(pool);
}

/// Twenty tasks with large arguments, four of each size.
fn submit_large(site: &Site, pool: &Pool) -> Vec<Job> {
    (0..20)
        .map(|index| site.submit_bytes(pool, 100_000 + index / 4))
        .collect()
}

fn large_arguments_stolen(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let blockers = [
        submit_blocker(site, &pool, "go0"),
        submit_blocker(site, &pool, "go1"),
    ];
    let jobs = submit_large(site, &pool);
    // One worker gets free and takes what waits at the other.
    site.touch("go0");
    assert_eq!(site.settle(&pool, &jobs).values, 20);
    // The other passes over what was taken from it.
    let jobs = submit_large(site, &pool);
    site.touch("go1");
    assert_eq!(site.settle(&pool, &jobs).values, 20);
    let more = submit_large(site, &pool);
    assert_eq!(site.settle(&pool, &more).values, 20);
    assert_eq!(site.settle(&pool, &blockers).values, 2);
    site.finish(pool);
}
