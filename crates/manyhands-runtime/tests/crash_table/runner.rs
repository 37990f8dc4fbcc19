//! Runs the cases: each in a process of its own, two at a time.

use crate::crash_table::case::{self, Case};
use crate::crash_table::helpers;
use crate::crash_table::processes;
use crate::crash_table::rows;
use crate::crash_table::site::{self, Site};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How many cases run at a time.
const AT_A_TIME: usize = 2;
/// When the runner kills a driver whose own watchdog did not end it.
const WATCHDOG: Duration = Duration::from_secs(30);
/// How long the processes of a driver that died may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Runs one case in this process: a folder, a mark, and the name of the case.
pub(crate) fn drive(arguments: &[String]) -> ExitCode {
    let [folder, mark, name] = arguments else {
        panic!("a folder, a mark and a name");
    };
    let mut cases = case::all().into_iter();
    let case = cases.find(|case| case.name == *name).unwrap();
    site::start_watchdog();
    // A thread that panics ends the case, and not only itself.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(101);
    }));
    (case.body)(&Site::new(Path::new(folder), mark));
    ExitCode::SUCCESS
}

/// Runs all cases whose names contain one of the filters, and prints the table.
pub(crate) fn run(filters: &[String]) -> ExitCode {
    rows::assert_complete();
    let filters: Vec<&String> = filters
        .iter()
        .filter(|filter| !filter.starts_with('-'))
        .collect();
    let wanted = |case: &Case| filters.is_empty() || filters.iter().any(|f| case.name.contains(*f));
    let cases: Vec<Case> = case::all().into_iter().filter(wanted).collect();
    let root = std::env::temp_dir().join(format!("manyhands-crash-{}", std::process::id()));
    std::fs::create_dir(&root).unwrap();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let name_width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else { return };
                    let began = Instant::now();
                    let answer = run_case(case, &root.join(index.to_string()));
                    let word = if answer.is_ok() { "ok" } else { "FAILED" };
                    let time = began.elapsed().as_millis();
                    println!(
                        "{:name_width$} | {} | {time} ms | {word}",
                        case.name, case.expectation
                    );
                    if let Err(why) = answer {
                        failures.lock().unwrap().push((&case.name, why));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    for (name, why) in &failures {
        println!("\n{name}:\n{why}");
    }
    let (failed, passed) = (failures.len(), cases.len() - failures.len());
    println!("\n{} s", start.elapsed().as_secs());
    println!("{passed} passed, {failed} failed");
    std::fs::remove_dir_all(&root).unwrap();
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_case(case: &Case, folder: &PathBuf) -> Result<(), String> {
    std::fs::create_dir(folder).unwrap();
    let mark = folder.to_str().unwrap();
    let output = std::fs::File::create(folder.join("output")).unwrap();
    let mut driver = Command::new(std::env::current_exe().unwrap())
        .args(["case", mark, mark, &case.name])
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let ended =
        wait_for(&mut driver).and_then(|status| match (case.driver_dies, status.signal()) {
            (true, Some(libc::SIGKILL)) => Ok(()),
            (true, _) => Err(format!(
                "the driver did not die at the fail point: {status}"
            )),
            (false, _) if status.success() => Ok(()),
            (false, _) => Err(format!("{status}")),
        });
    // Whatever happened, nothing may be left.
    let gone = processes::wait_until_none(mark, GONE);
    for (pid, _) in processes::marked(mark) {
        helpers::signal(pid, libc::SIGKILL);
    }
    let left = if case.driver_dies {
        rows::check_after_death(folder)
    } else {
        Ok(())
    };
    ended.and(gone).and(left).map_err(|why| {
        let said = std::fs::read_to_string(folder.join("output")).unwrap_or_default();
        format!("{why}\n{said}")
    })
}

fn wait_for(driver: &mut Child) -> Result<std::process::ExitStatus, String> {
    let end = Instant::now() + WATCHDOG;
    loop {
        if let Some(status) = driver.try_wait().unwrap() {
            return Ok(status);
        }
        if Instant::now() > end {
            driver.kill().unwrap();
            driver.wait().unwrap();
            return Err("hung".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
