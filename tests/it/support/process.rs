//! Child processes that never outlive us.
//!
//! The kernel's parent-death signal fires when the *thread* that forked ends, and tests' threads end all the time. So one thread,
//! which lives as long as the process, forks for everybody.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::files::server_user;

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    pid: i32,
}

impl Process {
    /// Starts it; it dies with this process, however that ends.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                Ok(())
            });
        }
        let child = spawner(command)?;
        let pid = i32::try_from(child.id()).expect("a pid");
        running().push(pid);
        Ok(Self { child: Mutex::new(child), pid })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.lock();
        if child.try_wait().expect("waitpid").is_none() {
            rustix::process::kill_process(pid(self.pid), signal).expect("kill");
        }
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        let status = self.lock().try_wait().expect("waitpid");
        if status.is_some() {
            running().retain(|other| *other != self.pid);
        }
        status
    }

    /// Waits for its end; `None` past the deadline.
    pub async fn wait(&self, deadline: Duration) -> Option<ExitStatus> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if tokio::time::Instant::now() > end {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL, and reaped.
    pub fn kill(&self) {
        let mut child = self.lock();
        drop(child.kill());
        drop(child.wait());
        running().retain(|other| *other != self.pid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that is known to run (a server's backend); one that has just gone is no error.
pub fn signal_pid(raw: i32, signal: Signal) {
    match rustix::process::kill_process(pid(raw), signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => panic!("kill {raw}: {e}"),
    }
}

/// Processes whose parent is this one.
pub fn children_of(parent: i32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        // Field 4 of stat; the name in field 2 may hold anything, so count from its closing parenthesis.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    })
    .collect()
}

/// Highest resident memory of a process in bytes, if it runs.
pub fn peak_rss_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Makes a command run as the servers' user.
pub fn as_server_user(command: &mut Command) -> &mut Command {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Runs a tool to its end and gives what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Kills whatever is still running; for the process's exit.
pub(super) fn kill_all() {
    for raw in running().drain(..) {
        signal_pid(raw, Signal::KILL);
    }
}

fn pid(raw: i32) -> Pid {
    Pid::from_raw(raw).expect("a pid")
}

fn running() -> std::sync::MutexGuard<'static, Vec<i32>> {
    static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

fn spawner(command: Command) -> io::Result<Child> {
    static JOBS: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            for (mut command, answer) in queue {
                drop(answer.send(command.spawn()));
            }
        };
        std::thread::Builder::new().name("spawner".into()).spawn(work).expect("a thread");
        Mutex::new(jobs)
    });
    let (answer, result) = mpsc::channel();
    jobs.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).expect("the spawner lives");
    result.recv().expect("the spawner lives")
}

/// Makes a library to be named in `LD_PRELOAD`, from C.
pub fn preloaded(folder: &Path, source: &str) -> Option<PathBuf> {
    let (text, library) = (folder.join("preloaded.c"), folder.join("preloaded.so"));
    std::fs::write(&text, source).expect("preloaded.c");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&text).arg("-ldl").output();
    if made.is_ok_and(|output| output.status.success()) {
        return Some(library);
    }
    super::skip("a library for LD_PRELOAD: it takes a C compiler");
    None
}
