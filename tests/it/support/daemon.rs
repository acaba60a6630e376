//! The built `millstream` program: its commands, and the daemon as a child that can be killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream::config::{Config, Environment, PgHost, SchemaChanges};
use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::files::Folder;
use super::postgres::{PgDatabase, free_port};
use super::process::Process;
use super::sql;
use super::wait::eventually;

/// The program under test: `MILLSTREAM_BIN`, what Cargo built for this test, or what lies beside an example.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MILLSTREAM_BIN") {
        return path.into();
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_millstream") {
        return path.into();
    }
    let here = std::env::current_exe().expect("current_exe");
    here.ancestors().nth(2).expect("a build folder").join("millstream")
}

/// A folder with a configuration file, an embedded queue and the daemons' logs: one installation.
pub struct Site {
    folder: Folder,
    http_port: u32,
    /// Environment of every command and daemon.
    pub environment: Vec<(String, String)>,
    /// Nobody runs what `init --superuser-sql` prints.
    pub without_triggers: bool,
    runs: AtomicU32,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Site {
    /// With a configuration; `{folder}` and `{http}` in it are replaced.
    pub fn new(configuration: &str) -> Self {
        let folder = Folder::new("site");
        let http_port = free_port();
        let site = Self { folder, http_port, environment: Vec::new(), without_triggers: false, runs: AtomicU32::new(0) };
        site.configure(configuration);
        site
    }

    /// A pair over the embedded queue: source `shop`, replica `reports`, every table of schema `public`.
    pub fn pair(source: &PgDatabase<'_>, replica: &PgDatabase<'_>) -> Self {
        Self::new(&pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue"))
    }

    /// Replaces the configuration.
    pub fn configure(&self, configuration: &str) {
        let text = configuration
            .replace("{folder}", &self.folder.path().display().to_string())
            .replace("{http}", &format!("127.0.0.1:{}", self.http_port));
        fs::write(self.configuration(), text).expect("millstream.toml");
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("millstream.toml")
    }

    /// A command line with this configuration: `["init"]`, `["log", "tail", "shop"]`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).arg("-c").arg(self.configuration()).current_dir(self.folder.path());
        // Backtraces are for our eyes: an operator's message must be clear without one.
        command.env_remove("RUST_BACKTRACE").env("NO_COLOR", "1").envs(self.environment.iter().cloned());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end. `init` finds what the documentation has a superuser install first.
    pub async fn run(&self, arguments: &[&str]) -> Outcome {
        if arguments.first() == Some(&"init") && !arguments.contains(&"--superuser-sql") && !self.without_triggers {
            self.install_triggers().await;
        }
        self.output(arguments).await
    }

    /// Runs a command with more environment (failpoints).
    #[cfg(feature = "failpoints")]
    pub async fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        ended(command).await
    }

    /// As `docs/postgresql.md` has it: what `init --superuser-sql` prints, run by a superuser. A source that cannot be reached is the command's to tell.
    async fn install_triggers(&self) {
        let text = fs::read_to_string(self.configuration()).expect("millstream.toml");
        let environment = Environment::of(self.environment.iter().cloned());
        let Ok(config) = Config::parse(&self.configuration(), &text, &environment) else { return };
        for source in config.sources.values().filter(|source| source.schema_changes == SchemaChanges::Carry) {
            let printed = self.output(&["init", "--source", &source.name, "--superuser-sql"]).await;
            if printed.code != Some(0) || !printed.stdout.contains(';') {
                continue;
            }
            let at = &source.connect;
            let host = match &at.host {
                PgHost::Unix(folder) => folder.display().to_string(),
                PgHost::Tcp(name) => name.clone(),
            };
            let options =
                PgConnectOptions::new_without_pgpass().host(&host).port(at.port).username("postgres").database(&at.database);
            // A server that asks even superusers for a password goes without.
            let Ok(mut superuser) = sql::connect(&options.ssl_mode(PgSslMode::Prefer)).await else { continue };
            sql::query(&mut superuser, &printed.stdout).await.unwrap_or_else(|e| panic!("{e}: {}", printed.stdout));
        }
    }

    async fn output(&self, arguments: &[&str]) -> Outcome {
        ended(self.command(arguments)).await
    }

    /// Runs a command that must end with code 0.
    #[track_caller]
    pub fn must(&self, arguments: &[&str]) -> impl Future<Output = String> {
        let place = std::panic::Location::caller();
        async move {
            let outcome = self.run(arguments).await;
            assert_eq!(outcome.code, Some(0), "{place}: {arguments:?}:\n{}\n{}", outcome.stdout, outcome.stderr);
            outcome.stdout
        }
    }

    /// Starts the daemon.
    pub fn start(&self) -> Daemon<'_> {
        self.start_with(&[])
    }

    /// Starts the daemon with more environment (failpoints).
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Daemon<'_> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.path().join(format!("daemon-{number}.log"));
        let file = fs::File::create(&log).expect("a log file");
        let mut command = self.command(&["run"]);
        command.envs(environment.iter().copied()).stdout(file.try_clone().expect("a log file")).stderr(file);
        let process = Process::spawn(command).unwrap_or_else(|e| panic!("{}: {e}", binary().display()));
        Daemon { site: self, process, log }
    }

    /// One HTTP request to the daemon: status and body.
    pub async fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        http_get(u16::try_from(self.http_port).expect("a port"), path).await
    }

    /// `/status`, when the daemon answers.
    pub async fn status(&self) -> Option<serde_json::Value> {
        let (_, body) = self.get("/status").await.ok()?;
        serde_json::from_str(&body).ok()
    }

    /// The first sample of a metric on `/metrics`.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics").await.ok()?;
        let line = body.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits for 200 from `/readyz`.
    #[track_caller]
    pub fn ready(&self, deadline: Duration) -> impl Future<Output = ()> {
        eventually("/readyz", deadline, async || match self.get("/readyz").await {
            Ok((200, _)) => Ok(()),
            Ok((code, body)) => Err(format!("{code} {body}\n{}", self.last_log())),
            Err(e) => Err(format!("{e}\n{}", self.last_log())),
        })
    }

    /// The end of the last daemon's log.
    pub fn last_log(&self) -> String {
        let number = self.runs.load(Ordering::Relaxed).saturating_sub(1);
        tail(&self.folder.path().join(format!("daemon-{number}.log")), 25)
    }

    /// Everything that daemons of this site have logged.
    pub fn all_logs(&self) -> String {
        let runs = self.runs.load(Ordering::Relaxed);
        (0..runs).map(|n| fs::read_to_string(self.folder.path().join(format!("daemon-{n}.log"))).unwrap_or_default()).collect()
    }
}

/// Runs a command to its end.
async fn ended(mut command: Command) -> Outcome {
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("join").expect("millstream");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The configuration of [`Site::pair`] over any queue.
pub fn pair_configuration(source_url: &str, replica_url: &str, queue_url: &str) -> String {
    format!(
        r#"[source.shop]
url = "{source_url}"
tables = ["public.*"]

[queue]
url = "{queue_url}"

[replica.reports]
source = "shop"
url = "{replica_url}"

[http]
listen = "{{http}}"
"#
    )
}

/// A running daemon. Killed when dropped.
pub struct Daemon<'s> {
    site: &'s Site,
    process: Process,
    log: PathBuf,
}

impl Daemon<'_> {
    /// SIGKILL. Its highest resident memory, read just before.
    pub fn kill(self) -> u64 {
        let peak = self.peak_rss_bytes();
        self.process.kill();
        peak
    }

    /// SIGTERM; it must end cleanly within the ten seconds that it promises.
    pub async fn terminate(self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        match self.process.wait(Duration::from_secs(10)).await {
            Some(status) => status,
            None => panic!("still running 10 s after SIGTERM:\n{}", self.log_tail()),
        }
    }

    /// Any signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Waits for it to end by itself.
    pub async fn wait(&self, deadline: Duration) -> Option<ExitStatus> {
        self.process.wait(deadline).await
    }

    /// Highest resident memory so far.
    pub fn peak_rss_bytes(&self) -> u64 {
        super::process::peak_rss_bytes(self.process.pid()).unwrap_or(0)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How its log ends.
    pub fn log_tail(&self) -> String {
        tail(&self.log, 40)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of {} in {} ---\n{}", self.log.display(), self.site.folder().display(), self.log_tail());
        }
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

async fn http_get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((code, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}
