//! Throw-away PostgreSQL servers.
//!
//! ```ignore
//! let source = PgServer::start().await;                                   // wal_level=logical, trust, socket and loopback port
//! let strict = PgServer::builder().set("max_slot_wal_keep_size", "1MB").start().await;
//! let db = postgres::shared().await.new_database().await;                 // a database on the process's common server
//! db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
//! source.crash(); source.restart().await;                                 // SIGKILL of postmaster and backends
//! ```
//! fsync is off: a process's death loses nothing that was written, only a host's would.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use millstream::config::{PgConnect, PgHost, TlsMode};
use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};

use super::files::{Folder, give_to_server_user, write_private};
use super::process::{Process, as_server_user, children_of, signal_pid};
use super::sql::{self, TextRow};
use super::tls::{CertificateWish, ServerTls};
use super::wait::{LONG, eventually};
use super::{process, template};

const DEFAULTS: &str = "\
wal_level = logical
max_wal_senders = 60
max_replication_slots = 400
max_connections = 200
max_prepared_transactions = 10
shared_buffers = 32MB
fsync = off
jit = off
listen_addresses = '127.0.0.1'
log_line_prefix = '%m [%p] %q%u@%d '
";
/// Whom Millstream connects as: the documented rights ([`template`] makes it), nothing more.
pub const ROLE: &str = "millstream";
const TRUST: &str = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";

/// How a server is to be.
#[derive(Default)]
pub struct Builder {
    settings: Vec<(String, String)>,
    tls: Option<CertificateWish>,
    hba: Option<String>,
    data: Option<PathBuf>,
    bin: Option<PathBuf>,
}

impl Builder {
    /// Adds a line to `postgresql.conf`.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// TLS, with a certificate like this.
    #[must_use]
    pub fn tls(mut self, wish: CertificateWish) -> Self {
        self.tls = Some(wish);
        self
    }

    /// Another `pg_hba.conf`. Without a trust line for `local all postgres`, say where the password comes from yourself.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.into());
        self
    }

    /// The cluster in this folder of its own (a small tmpfs), which must be the server user's.
    #[must_use]
    pub fn data_in(mut self, folder: &Path) -> Self {
        self.data = Some(folder.join("data"));
        self
    }

    /// Of the replicas' version, where that is another.
    #[must_use]
    pub fn replica(mut self) -> Self {
        self.bin = Some(template::replica_bin().to_owned());
        self
    }

    /// Makes the cluster and starts the server.
    pub async fn start(self) -> PgServer {
        let server = tokio::task::spawn_blocking(|| PgServer::prepare(self)).await.expect("a cluster");
        server.restart().await;
        server
    }
}

/// A server. Ends, with its folder, when dropped.
pub struct PgServer {
    process: Mutex<Option<Process>>,
    port: AtomicU32,
    bin: PathBuf,
    data: PathBuf,
    tls: Option<ServerTls>,
    databases: AtomicU32,
    folder: Folder,
}

impl PgServer {
    /// A server as most tests want it.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// One with wishes.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A standby of this server, from a cold copy: this one stops in order, its folder is copied, and it runs again. The standby
    /// streams what comes after, and has none of this server's slots, as after `pg_basebackup` (which a server's own programs
    /// may come without).
    pub async fn cold_standby(&self) -> Self {
        self.cold_standby_with("").await
    }

    /// The same with lines for the standby's `postgresql.conf`.
    pub async fn cold_standby_with(&self, settings: &str) -> Self {
        let folder = Folder::new("standby");
        let data = folder.path().join("data");
        self.stop().await;
        let (from, to) = (self.data.clone(), data.clone());
        tokio::task::spawn_blocking(move || template::copy_cluster(&from, &to)).await.expect("a copy");
        self.restart().await;
        for slot in fs::read_dir(data.join("pg_replslot")).expect("pg_replslot") {
            fs::remove_dir_all(slot.expect("a slot").path()).expect("remove");
        }
        let primary = format!("host={} port={} user=postgres dbname=postgres", self.folder().display(), self.port());
        append(&data.join("postgresql.conf"), &format!("primary_conninfo = '{primary}'\n{settings}"));
        write_private(&data.join("standby.signal"), "");
        Self::adopt(self.bin.clone(), folder, data).await
    }

    /// Starts a server on a cluster that is already made. Its settings stay as they are but for sockets and port.
    async fn adopt(bin: PathBuf, folder: Folder, data: PathBuf) -> Self {
        let server = Self {
            process: Mutex::new(None),
            port: AtomicU32::new(free_port()),
            bin,
            data,
            tls: None,
            databases: AtomicU32::new(0),
            folder,
        };
        server.restart().await;
        server
    }

    fn prepare(wish: Builder) -> Self {
        let folder = Folder::new("pg");
        let data = wish.data.unwrap_or_else(|| folder.path().join("data"));
        let bin = wish.bin.unwrap_or_else(|| template::bin().to_owned());
        template::new_cluster(&bin, &data);
        let mut settings = DEFAULTS.to_owned();
        let tls = wish.tls.map(|wish| ServerTls::make(folder.path(), &wish));
        if let Some(tls) = &tls {
            settings +=
                &format!("ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n", tls.certificate.display(), tls.key.display());
        }
        for (name, value) in wish.settings {
            settings += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        }
        append(&data.join("postgresql.conf"), &settings);
        write_private(&data.join("pg_hba.conf"), wish.hba.as_deref().unwrap_or(TRUST));
        Self {
            process: Mutex::new(None),
            port: AtomicU32::new(free_port()),
            bin,
            data,
            tls,
            databases: AtomicU32::new(0),
            folder,
        }
    }

    /// Starts it where it does not run, and waits until it answers. Keeps its port, unless somebody else took it before the first start.
    pub async fn restart(&self) {
        let end = Instant::now() + LONG;
        loop {
            self.spawn();
            match self.answers(end).await {
                Ok(()) => return,
                Err(log) if Instant::now() > end => panic!("PostgreSQL does not start:\n{log}"),
                Err(log) if log.contains("Address already in use") && self.databases.load(Ordering::Relaxed) == 0 => {
                    self.port.store(free_port(), Ordering::Relaxed);
                }
                // A crashed server's last backends still hold its shared memory.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn spawn(&self) {
        let mut running = self.process.lock().expect("lock");
        if running.as_ref().is_some_and(|process| process.exited().is_none()) {
            return;
        }
        let log = fs::File::create(self.folder.path().join("server.log")).expect("server.log");
        let mut command = Command::new(self.bin.join("postgres"));
        command.arg("-D").arg(&self.data).arg("-k").arg(self.folder.path()).arg("-p").arg(self.port().to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("server.log")).stderr(log);
        as_server_user(&mut command);
        *running = Some(Process::spawn(command).expect("postgres"));
    }

    /// Ready, or how its log ends when it gave up.
    async fn answers(&self, end: Instant) -> Result<(), String> {
        loop {
            let attempt =
                tokio::time::timeout(Duration::from_secs(2), PgConnection::connect_with(&self.options("postgres"))).await;
            match attempt {
                Ok(Ok(connection)) => {
                    drop(connection.close().await);
                    return Ok(());
                }
                // Refused by its rules: it runs, and the test wanted it so.
                Ok(Err(sqlx::Error::Database(e))) if e.code().is_some_and(|code| code.starts_with("28")) => return Ok(()),
                _ => {}
            }
            let ended = self.process.lock().expect("lock").as_ref().is_none_or(|process| process.exited().is_some());
            if ended || Instant::now() > end {
                return Err(self.log());
            }
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// TCP port on 127.0.0.1, also in the socket's name.
    pub fn port(&self) -> u16 {
        u16::try_from(self.port.load(Ordering::Relaxed)).expect("a port")
    }

    /// Folder of the Unix socket, the log and the cluster (`data`).
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cluster.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its major version.
    pub fn major_version(&self) -> u32 {
        template::version_of(&self.bin)
    }

    /// Certificates, when it has TLS.
    pub fn tls(&self) -> &ServerTls {
        self.tls.as_ref().expect("a server with TLS")
    }

    /// What the server has logged since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// A database of its own on this server.
    pub async fn new_database(&self) -> PgDatabase<'_> {
        let name = format!("db{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let postgres = self.database("postgres");
        postgres.execute(&format!("CREATE DATABASE {name}")).await;
        postgres.execute(&format!("GRANT CREATE ON DATABASE {name} TO {ROLE}")).await;
        self.database(&name)
    }

    /// A database that is there. `postgres` always is.
    pub fn database(&self, name: &str) -> PgDatabase<'_> {
        let pool = PgPoolOptions::new()
            .min_connections(0)
            .max_connections(16)
            .acquire_timeout(Duration::from_secs(10))
            .idle_timeout(Duration::from_secs(2))
            .connect_lazy_with(self.options(name));
        PgDatabase { server: self, name: name.into(), pool }
    }

    /// sqlx's options for the Unix socket, as superuser.
    pub fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(&self.folder.path().display().to_string())
            .port(self.port())
            .username("postgres")
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .disable_statement_logging()
    }

    /// Replaces `pg_hba.conf` and has it read; connections that stand are left alone.
    pub fn set_hba(&self, lines: &str) {
        write_private(&self.data.join("pg_hba.conf"), lines);
        self.signal(Signal::HUP);
    }

    /// Puts lines before all others.
    pub fn prepend_hba(&self, lines: &str) {
        let old = fs::read_to_string(self.data.join("pg_hba.conf")).expect("pg_hba.conf");
        self.set_hba(&format!("{lines}\n{old}"));
    }

    /// Adds a setting to `postgresql.conf`; takes effect by [`Self::reload`] or a restart.
    pub fn configure(&self, name: &str, value: &str) {
        append(&self.data.join("postgresql.conf"), &format!("{name} = '{}'\n", value.replace('\'', "''")));
    }

    /// Reads the configuration again.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// SIGKILL of the postmaster and every backend: what a power loss of the server alone looks like.
    pub fn crash(&self) {
        let running = self.process.lock().expect("lock").take();
        let Some(process) = running else { return };
        // Stopped first, so that it forks no more while its children are counted.
        process.signal(Signal::STOP);
        let children = children_of(process.pid());
        process.kill();
        children.into_iter().for_each(|pid| signal_pid(pid, Signal::KILL));
    }

    /// Ends it in order: `fast` shutdown, which ends sessions.
    pub async fn stop(&self) {
        self.signal(Signal::INT);
        let running = self.process.lock().expect("lock").take();
        if let Some(process) = running {
            assert!(process.wait(LONG).await.is_some(), "PostgreSQL does not stop:\n{}", self.log());
        }
    }

    /// SIGSTOP of everything: connections stand, nobody answers.
    pub fn freeze(&self) {
        let pid = self.pid();
        signal_pid(pid, Signal::STOP);
        children_of(pid).into_iter().for_each(|pid| signal_pid(pid, Signal::STOP));
    }

    /// Ends [`Self::freeze`].
    pub fn thaw(&self) {
        let pid = self.pid();
        children_of(pid).into_iter().for_each(|pid| signal_pid(pid, Signal::CONT));
        signal_pid(pid, Signal::CONT);
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> i32 {
        self.process.lock().expect("lock").as_ref().expect("a running server").pid()
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.process.lock().expect("lock").as_ref() {
            process.signal(signal);
        }
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("--- end of the log of the server on port {} ---", self.port());
            tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
        }
        let running = self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(process) = running {
            // Immediate shutdown frees the shared memory; a frozen server must wake to hear it.
            process.signal(Signal::QUIT);
            let children = children_of(process.pid());
            children.into_iter().for_each(|pid| signal_pid(pid, Signal::CONT));
            process.signal(Signal::CONT);
            let end = Instant::now() + Duration::from_secs(6);
            while process.exited().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
    }
}

/// A database on a server, with a pool for the test's own SQL.
pub struct PgDatabase<'s> {
    /// Its server.
    pub server: &'s PgServer,
    /// Its name.
    pub name: String,
    /// For plain SQL, as superuser.
    pub pool: PgPool,
}

impl PgDatabase<'_> {
    /// Statements that must work; several with `;`.
    #[track_caller]
    pub fn execute<'a>(&'a self, sql: &'a str) -> impl Future<Output = ()> + 'a {
        sql::execute(&self.pool, sql)
    }

    /// The first value as text.
    #[track_caller]
    pub fn value<'a>(&'a self, sql: &'a str) -> impl Future<Output = String> + 'a {
        sql::value(&self.pool, sql)
    }

    /// Rows as text, or the server's error.
    pub async fn query(&self, sql: &str) -> Result<Vec<TextRow>, sqlx::Error> {
        sql::query(&self.pool, sql).await
    }

    /// A connection of its own, for transactions that stay open.
    pub async fn connection(&self) -> PgConnection {
        let options = self.server.options(&self.name);
        eventually("a connection", LONG, async || sql::connect(&options).await).await
    }

    /// How Millstream reaches it over the Unix socket, with the rights that are documented ([`ROLE`]).
    pub fn connect(&self) -> PgConnect {
        PgConnect {
            host: PgHost::Unix(self.server.folder().to_owned()),
            port: self.server.port(),
            user: ROLE.into(),
            database: self.name.clone(),
            password: None,
            password_file: None,
            unread: None,
            tls: TlsMode::Disable,
            root_certificate: None,
            client_certificate: None,
            connect_timeout: Duration::from_secs(5),
        }
    }

    /// The same as a superuser.
    pub fn connect_as_superuser(&self) -> PgConnect {
        PgConnect { user: "postgres".into(), ..self.connect() }
    }

    /// As whoever may set `session_replication_role`: on PostgreSQL 14 only superusers.
    pub fn connect_with_replica_role(&self) -> PgConnect {
        if self.server.major_version() < 15 { self.connect_as_superuser() } else { self.connect() }
    }

    /// The same over TCP on 127.0.0.1, without TLS.
    pub fn connect_tcp(&self) -> PgConnect {
        PgConnect { host: PgHost::Tcp("127.0.0.1".into()), ..self.connect() }
    }

    /// For the configuration file: TCP.
    pub fn url(&self) -> String {
        self.url_at(self.server.port())
    }

    /// For the configuration file, through a proxy's port.
    pub fn url_at(&self, port: u16) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{port}/{}?sslmode=disable", self.name)
    }

    /// For the configuration file: the Unix socket.
    pub fn socket_url(&self) -> String {
        let folder = self.server.folder().display().to_string().replace('/', "%2F");
        format!("postgres://{ROLE}@{folder}:{}/{}", self.server.port(), self.name)
    }
}

/// The server that tests share that only need a database of their own. Never crash, freeze or reconfigure this one.
pub async fn shared() -> &'static PgServer {
    static SHARED: tokio::sync::OnceCell<PgServer> = tokio::sync::OnceCell::const_new();
    SHARED.get_or_init(PgServer::start).await
}

/// A second one, for the other side of a pair: with another identity, and of another version where that is asked for.
pub async fn shared_replica() -> &'static PgServer {
    static SHARED: tokio::sync::OnceCell<PgServer> = tokio::sync::OnceCell::const_new();
    SHARED.get_or_init(|| PgServer::builder().replica().start()).await
}

/// A port below the range from which the kernel takes ports for outgoing connections, so that a server that restarts finds it free.
pub fn free_port() -> u32 {
    loop {
        let port: u16 = rand::random_range(15_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port.into();
        }
    }
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(text.as_bytes()).expect("write");
    give_to_server_user(path);
}

/// A tool of this server's version, as the server's user. The suite itself needs none: only `initdb` and `postgres`.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(template::bin().join(name));
    process::as_server_user(&mut command);
    command
}
