//! The driver's tools: a supervisor, pools, jobs whose runs are counted, and the checks at the end.

use crate::crash_table::helpers::{until, wait};
use crate::crash_table::processes::{self, MARK};
use crate::crash_table::stored;
use crate::crash_table::tally::{End, Expected, Tally};
use crate::crash_table::worker;
use manyhands_runtime::{
    Buffer, Bytes, Definition, Entry, Initializer, Launcher, Limits, Outcome, Pool, PoolOptions,
    PoolStats, Recycling, Refused, Retry, STALLED_AFTER, Supervisor, Task, TaskKind,
};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Three megabytes: far beyond what a ring carries.
pub(crate) const LARGE: usize = 3 << 20;
/// How long the driver gives a case before it says what it sees and ends.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(25);
/// How long processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Where a case happens: a folder of its own and a supervisor.
pub(crate) struct Site {
    pub(crate) folder: PathBuf,
    pub(crate) mark: String,
    pub(crate) supervisor: Arc<Supervisor>,
    environment: Mutex<Vec<(OsString, OsString)>>,
    next_number: AtomicU64,
    runs: PathBuf,
    /// Descriptors that were open before the first pool, those of messages not counted.
    descriptors: Vec<String>,
}

/// A task that was submitted, and what it must return.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) command: String,
    pub(crate) task: Arc<Task>,
    expected: Expected,
    /// The lengths of the buffers that must come with that.
    buffers: Vec<usize>,
}

/// What the watchdog looks at when a case hangs.
static WATCHED: Mutex<Vec<(Arc<Supervisor>, Arc<Pool>)>> = Mutex::new(Vec::new());

/// Ends this process when the case takes too long, saying what the pools look like.
pub(crate) fn start_watchdog() {
    std::thread::spawn(|| {
        std::thread::sleep(WATCHDOG);
        eprintln!("the case hangs");
        for (supervisor, pool) in WATCHED.lock().unwrap().iter() {
            let mut logs = supervisor.take_logs();
            logs.dedup();
            eprintln!("log: {logs:#?}");
            eprintln!(
                "pools: {}, zygote {}",
                supervisor.pools().len(),
                supervisor.zygote_pid()
            );
            eprintln!("{:#?}", pool.stats());
        }
        std::process::exit(3);
    });
}

impl Site {
    /// A site in the folder; processes carry the mark.
    pub(crate) fn new(folder: &Path, mark: &str) -> Self {
        let runs = folder.join("runs");
        std::fs::write(&runs, "").unwrap();
        let supervisor = Supervisor::new().unwrap();
        supervisor
            .set_birth(runs.as_os_str().as_encoded_bytes())
            .unwrap();
        let site = Self {
            folder: folder.to_owned(),
            mark: mark.to_owned(),
            supervisor,
            environment: Mutex::new(vec![(MARK.into(), mark.into())]),
            next_number: AtomicU64::new(0),
            runs,
            descriptors: processes::descriptors(),
        };
        site.launch_with(&[]);
        site
    }

    /// Adds variables to the environment of zygotes that are started from now on.
    pub(crate) fn launch_with(&self, variables: &[(&str, &str)]) {
        let mut environment = self.environment.lock().unwrap();
        environment.extend(
            variables
                .iter()
                .map(|&(name, value)| (name.into(), value.into())),
        );
        self.supervisor.set_launcher(Launcher {
            argv: vec![std::env::current_exe().unwrap().into(), "zygote".into()],
            environment: Some(environment.clone()),
        });
    }

    /// Has one process, worker or zygote, die at the fail point when it comes there for the n-th time.
    pub(crate) fn crash_at(&self, point: &str, nth: u32) {
        self.launch_with(&[
            ("MANYHANDS_CRASH_AT", &format!("{point}:{nth}")),
            ("MANYHANDS_CRASH_ONCE", self.crash_mark().to_str().unwrap()),
        ]);
    }

    /// Has all processes die there.
    pub(crate) fn always_crash_at(&self, point: &str) {
        self.launch_with(&[("MANYHANDS_CRASH_AT", point)]);
    }

    /// Has one process stand still at the fail point when it comes there for the n-th time.
    pub(crate) fn stall_at(&self, point: &str, nth: u32) {
        self.launch_with(&[
            ("MANYHANDS_STALL_AT", &format!("{point}:{nth}")),
            ("MANYHANDS_CRASH_ONCE", self.crash_mark().to_str().unwrap()),
        ]);
    }

    /// The file that tells that the process died at its fail point.
    pub(crate) fn crash_mark(&self) -> PathBuf {
        self.folder.join("crashed")
    }

    /// Waits until the process has died at its fail point.
    pub(crate) fn wait_for_crash(&self) {
        until(|| self.crash_mark().exists());
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn touch(&self, name: &str) {
        std::fs::File::create(self.folder.join(name)).unwrap();
    }

    /// A pool of so many workers.
    pub(crate) fn pool(&self, workers: usize) -> Arc<Pool> {
        self.pool_with(workers, None)
    }

    /// A pool whose workers run the command first.
    pub(crate) fn pool_with(&self, workers: usize, initializer: Option<&str>) -> Arc<Pool> {
        self.pool_of_recycled(workers, initializer, Recycling::default())
    }

    /// The same, of workers that give way to fresh ones.
    pub(crate) fn pool_of_recycled(
        &self,
        workers: usize,
        initializer: Option<&str>,
        recycling: Recycling,
    ) -> Arc<Pool> {
        let initializer = initializer.map(|command| Initializer {
            definition: None,
            needs: Vec::new(),
            tag: 0,
            payload: format!("init {command}").into_bytes(),
        });
        self.pool_of(PoolOptions {
            workers,
            initializer,
            cores: manyhands_os::cpu_count(),
            stuck_after: None,
            stalled_after: STALLED_AFTER,
            events: None,
            output: Some(Arc::default()),
            memory: None,
            recycling,
            share: None,
        })
    }

    /// A pool whose tasks may take so many bytes together.
    pub(crate) fn pool_with_memory(&self, workers: usize, bytes: u64) -> Arc<Pool> {
        self.pool_of(PoolOptions {
            workers,
            initializer: None,
            cores: manyhands_os::cpu_count(),
            stuck_after: None,
            stalled_after: STALLED_AFTER,
            events: None,
            output: None,
            memory: Some(bytes),
            recycling: Recycling::default(),
            share: None,
        })
    }

    /// A pool that takes itself for stalled, and tasks for stuck, after so long.
    pub(crate) fn impatient_pool(&self, workers: usize, after: Duration) -> Arc<Pool> {
        let after = after.as_nanos() as u64;
        self.pool_of(PoolOptions {
            workers,
            initializer: None,
            cores: manyhands_os::cpu_count(),
            stuck_after: Some(after),
            stalled_after: after,
            events: None,
            output: None,
            memory: None,
            recycling: Recycling::default(),
            share: None,
        })
    }

    fn pool_of(&self, options: PoolOptions) -> Arc<Pool> {
        let pool = Pool::new(self.supervisor.clone(), options).unwrap();
        WATCHED
            .lock()
            .unwrap()
            .push((self.supervisor.clone(), pool.clone()));
        pool
    }

    fn job(&self, command: &str, expected: Expected) -> (Job, Vec<u8>) {
        let number = self.next_number();
        let payload = format!("{number} {command}").into_bytes();
        let job = Job {
            number,
            command: command.to_owned(),
            task: Task::new(number, None),
            expected,
            buffers: Vec::new(),
        };
        (job, payload)
    }

    /// A number that no other task or item has.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Submits a command; a pool that does not take it gives the reason.
    pub(crate) fn try_submit(&self, pool: &Pool, command: &str) -> Result<Job, Refused> {
        let expected = Expected::of(command);
        let (job, payload) = self.job(command, expected);
        let payload = Bytes::copy_of(&payload);
        let task = Some(job.task.clone());
        pool.submit(Entry::new(
            task,
            TaskKind::Run,
            None,
            Vec::new(),
            1,
            payload,
        ))?;
        Ok(job)
    }

    /// Submits a command that may take so much.
    pub(crate) fn submit_limited(&self, pool: &Pool, command: &str, limits: Limits) -> Job {
        let (job, payload) = self.job(command, Expected::of(command));
        let (task, payload) = (Some(job.task.clone()), Bytes::copy_of(&payload));
        let mut entry = Entry::new(task, TaskKind::Run, None, Vec::new(), 1, payload);
        entry.limits = limits;
        pool.submit(entry).unwrap();
        job
    }

    /// Submits a command that runs again if it fails.
    pub(crate) fn submit_again(
        &self,
        pool: &Pool,
        command: &str,
        limits: Limits,
        retry: &Arc<Retry>,
    ) -> Job {
        let (job, payload) = self.job(command, Expected::of(command));
        let (task, payload) = (Some(job.task.clone()), Bytes::copy_of(&payload));
        let mut entry = Entry::new(task, TaskKind::Run, None, Vec::new(), 1, payload);
        (entry.limits, entry.retry) = (limits, Some(retry.clone()));
        pool.submit(entry).unwrap();
        job
    }

    /// Submits a command with a priority.
    pub(crate) fn submit_urgent(&self, pool: &Pool, command: &str, priority: i32) -> Job {
        let (job, payload) = self.job(command, Expected::of(command));
        let (task, payload) = (Some(job.task.clone()), Bytes::copy_of(&payload));
        let mut entry = Entry::new(task, TaskKind::Run, None, Vec::new(), 1, payload);
        entry.priority = Some(priority);
        pool.submit(entry).unwrap();
        job
    }

    /// Submits a command.
    pub(crate) fn submit(&self, pool: &Pool, command: &str) -> Job {
        self.try_submit(pool, command).unwrap()
    }

    /// Submits so many short tasks.
    pub(crate) fn submit_echoes(&self, pool: &Pool, count: usize) -> Vec<Job> {
        (0..count)
            .map(|index| self.submit(pool, &format!("echo:{index}")))
            .collect()
    }

    /// Submits a task with so many bytes of arguments, which no other task has.
    pub(crate) fn submit_bytes(&self, pool: &Pool, count: usize) -> Job {
        let first = self.next_number.load(Ordering::Relaxed) as usize;
        let bytes = worker::pattern(first, count);
        let (job, mut payload) = self.job("sum:", Expected::Value(worker::sum(&bytes).into()));
        payload.extend_from_slice(&bytes);
        let payload = if count.is_multiple_of(2) {
            Bytes::copy_of(&payload)
        } else {
            Bytes::File(manyhands_os::MessageFile::new(&payload).unwrap())
        };
        let task = Some(job.task.clone());
        pool.submit(Entry::new(
            task,
            TaskKind::Run,
            None,
            Vec::new(),
            1,
            payload,
        ))
        .unwrap();
        job
    }

    /// Submits a task with buffers of these lengths, in blocks; see `stored`.
    pub(crate) fn submit_stored(&self, pool: &Pool, lengths: &[usize], command: &str) -> Job {
        self.submit_stored_with(pool, lengths, command, |_| ())
    }

    /// The same, of which more is said.
    pub(crate) fn submit_stored_with(
        &self,
        pool: &Pool,
        lengths: &[usize],
        command: &str,
        with: impl FnOnce(&mut Entry),
    ) -> Job {
        let (mut job, payload) = self.job(command, Expected::of(command));
        job.buffers = [lengths, &stored::written(command)].concat();
        let payload = Bytes::copy_of(&payload).with_buffers(self.stored(lengths));
        let task = Some(job.task.clone());
        let mut entry = Entry::new(task, TaskKind::Run, None, Vec::new(), 1, payload);
        with(&mut entry);
        pool.submit(entry).unwrap();
        job
    }

    /// Buffers of these lengths.
    pub(crate) fn stored(&self, lengths: &[usize]) -> Vec<Buffer> {
        let store = self.supervisor.store();
        // Of both kinds.
        let store = |&len: &usize| {
            let block = store.store(&stored::content(len)).unwrap();
            Buffer::whole(block, len.is_multiple_of(2))
        };
        lengths.iter().map(store).collect()
    }

    /// Waits until no block is left.
    #[track_caller]
    pub(crate) fn assert_no_blocks(&self) {
        until(|| self.supervisor.store().stats().blocks == 0);
        assert_eq!(self.supervisor.store().stats().live, 0);
    }

    /// Submits a task that returns its large arguments.
    pub(crate) fn submit_mirror(&self, pool: &Pool, count: usize) -> Job {
        let bytes = worker::big(count);
        let (job, mut payload) = self.job("mirror:", Expected::Value(bytes.clone()));
        payload.extend_from_slice(&bytes);
        let (task, payload) = (Some(job.task.clone()), Bytes::copy_of(&payload));
        pool.submit(Entry::new(
            task,
            TaskKind::Run,
            None,
            Vec::new(),
            1,
            payload,
        ))
        .unwrap();
        job
    }

    /// Submits a task that runs a definition.
    pub(crate) fn submit_definition(&self, pool: &Pool, definition: &Arc<Definition>) -> Job {
        self.submit_definition_with(pool, definition, "!")
    }

    /// The same, with this text.
    pub(crate) fn submit_definition_with(
        &self,
        pool: &Pool,
        definition: &Arc<Definition>,
        text: &str,
    ) -> Job {
        let expected = [definition.bytes(), text.as_bytes()].concat();
        let (job, payload) = self.job(&format!("define:{text}"), Expected::Value(expected));
        let (task, payload) = (Some(job.task.clone()), Bytes::copy_of(&payload));
        let needs = definition.needs().to_vec();
        let definition = Some(definition.clone());
        pool.submit(Entry::new(
            task,
            TaskKind::Run,
            definition,
            needs,
            1,
            payload,
        ))
        .unwrap();
        job
    }

    /// Short tasks in a pipeline, some of which run definitions, large arguments, large results, one
    /// task that sleeps and one that fails.
    pub(crate) fn submit_mixture(&self, pool: &Pool) -> Vec<Job> {
        let base = Definition::new("base", Box::from(&b"base"[..]), Box::from([]));
        let mut jobs = Vec::new();
        for round in 0..6 {
            let bytes = format!("definition {round}").into_bytes();
            let definition = Definition::new("d", bytes.into(), Box::from([base.clone()]));
            jobs.extend((0..8).map(|index| self.submit(pool, &format!("echo:{round} {index}"))));
            jobs.push(self.submit_definition(pool, &definition));
            jobs.push(self.submit_definition(pool, &definition));
            if round % 3 == 1 {
                jobs.push(self.submit_bytes(pool, LARGE + round));
                jobs.push(self.submit(pool, &format!("big:{}", LARGE + round)));
            }
        }
        jobs.push(self.submit(pool, "sleep:20"));
        jobs.push(self.submit(pool, "error:as it should"));
        jobs.extend((0..20).map(|index| self.submit(pool, &format!("echo:last {index}"))));
        jobs
    }

    /// How often each number is in the file of runs.
    pub(crate) fn runs(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for line in std::fs::read_to_string(&self.runs).unwrap().lines() {
            let number = line.split(' ').next().unwrap();
            *counts.entry(number.to_owned()).or_insert(0) += 1;
        }
        counts
    }

    /// In which order tasks ran: number and pid of each run.
    pub(crate) fn run_order(&self) -> Vec<(u64, i32)> {
        let text = std::fs::read_to_string(&self.runs).unwrap();
        text.lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let number = words.next()?.parse().ok()?;
                Some((number, words.next()?.parse().unwrap()))
            })
            .collect()
    }

    /// Waits for all jobs and counts how they ended. Values must be right; what returned ran once,
    /// what died at most once, and what never started not at all.
    pub(crate) fn settle(&self, pool: &Pool, jobs: &[Job]) -> Tally {
        for job in jobs {
            wait(pool, &job.task);
        }
        self.tally(jobs)
    }

    /// As `settle`, for jobs that have ended.
    pub(crate) fn tally(&self, jobs: &[Job]) -> Tally {
        let runs = self.runs();
        let mut tally = Tally::default();
        for job in jobs {
            if let Outcome::Value(_, bytes) = job.task.outcome().unwrap() {
                let buffers = bytes.buffers();
                let lengths: Vec<usize> = buffers.iter().map(|buffer| buffer.len).collect();
                assert_eq!(lengths, job.buffers, "buffers of {}", job.number);
                stored::check(self.supervisor.views(), buffers).unwrap();
            }
            tally.add(&End {
                number: job.number,
                command: &job.command,
                outcome: job.task.outcome().unwrap(),
                expected: &job.expected,
                runs: runs.get(&job.number.to_string()).copied().unwrap_or(0),
            });
        }
        tally
    }

    /// How often this job ran.
    pub(crate) fn runs_of(&self, job: &Job) -> usize {
        self.runs()
            .get(&job.number.to_string())
            .copied()
            .unwrap_or(0)
    }

    /// One more task succeeds.
    pub(crate) fn assert_usable(&self, pool: &Pool) {
        let job = self.submit(pool, "echo:still here");
        assert_eq!(self.settle(pool, &[job]).values, 1);
    }

    /// As many tasks run at once as there are workers: each hears what it is to forget.
    pub(crate) fn assert_all_usable(&self, pool: &Pool, workers: usize) {
        let folder = self.path("meeting");
        std::fs::create_dir(&folder).unwrap();
        let meet = |_| self.submit(pool, &format!("meet:{folder} {workers}"));
        let jobs: Vec<Job> = (0..workers).map(meet).collect();
        assert_eq!(self.settle(pool, &jobs).values, workers);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Lets go of a pool that the watchdog knows.
    pub(crate) fn forget(&self, pool: Arc<Pool>) {
        WATCHED
            .lock()
            .unwrap()
            .retain(|(_, watched)| !Arc::ptr_eq(watched, &pool));
    }

    /// Closes the pool and checks that nothing is left of it.
    pub(crate) fn finish(&self, pool: Arc<Pool>) -> PoolStats {
        pool.close(false, false);
        self.finish_closed(pool)
    }

    /// Checks that nothing is left of a pool that was closed: no worker, no task, no descriptor, and
    /// after the supervisor's stop no process.
    pub(crate) fn finish_closed(&self, pool: Arc<Pool>) -> PoolStats {
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        let stats = pool.stats();
        assert_eq!(
            (stats.pending, stats.queued),
            (0, 0),
            "left in a closed pool"
        );
        assert!(stats.workers.is_empty(), "left in a closed pool: {stats:?}");
        assert!(self.try_submit(&pool, "echo:late").is_err());
        until(|| self.supervisor.pools().is_empty());
        self.supervisor.stop();
        until(|| self.supervisor.zygote_pid() == 0);
        self.assert_no_blocks();
        if let Err(left) = processes::wait_until_none(&self.mark, GONE) {
            panic!("{left}");
        }
        until(|| processes::children().is_empty());
        WATCHED.lock().unwrap().clear();
        drop(pool);
        let mut rounds = 0;
        until(|| {
            rounds += 1;
            let left = processes::descriptors();
            assert!(
                rounds < 2000,
                "before: {:#?}, after: {left:#?}",
                self.descriptors
            );
            left.len() <= self.descriptors.len()
        });
        stats
    }
}
