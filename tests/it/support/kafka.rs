//! Throw-away Kafka: KRaft nodes on loopback, each broker and controller in one JVM.
//!
//! ```ignore
//! let kafka = kafka::shared().await;                                     // the process's common broker; for what breaks nothing
//! let queue = kafka.queue("name");                                       // a queue with a topic prefix of its own
//! let cluster = Kafka::builder().nodes(3).start().await;
//! cluster.node(1).pause(); cluster.node(2).kill(); cluster.node(2).restart().await;
//! let strict = Kafka::builder().tls(CertificateWish::default()).user("app", "secret").acls().start().await;
//! ```
//! A JVM takes 4 s to start and 400 MB: use [`shared`] wherever a test does not harm it. The jars come from
//! `tests/tools/install-kafka`.
//!
//! Every node listens three times: CLIENT (as the test wishes it: plain, TLS, SASL), INTERNAL (plain, for the brokers among
//! themselves and the tests' own administration, a superuser) and CONTROLLER.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::queue::kafka::{KafkaQueue, KafkaSettings};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;
use tokio::sync::OnceCell;

use super::files::Folder;
use super::postgres::free_port;
use super::process::{self, Process};
use super::tls::{CertificateWish, ServerTls};
use super::wait::eventually;

/// A JVM on a machine that compiles at the same time.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// When a missing topic counts as deleted: sooner than outside of tests, and before one call stops waiting for it.
const GONE_AFTER: Duration = Duration::from_secs(3);

/// How a cluster is to be.
#[derive(Default)]
pub struct Builder {
    nodes: usize,
    settings: Vec<(String, String)>,
    users: Vec<(String, String)>,
    tls: Option<CertificateWish>,
    acls: bool,
}

impl Builder {
    /// That many nodes; one unless said.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Adds a line to `server.properties`.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Clients must log in with SASL; this one may, by SCRAM-SHA-256 and by PLAIN.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.into(), password.into()));
        self
    }

    /// Clients must speak TLS, and are shown a certificate like this.
    #[must_use]
    pub fn tls(mut self, wish: CertificateWish) -> Self {
        self.tls = Some(wish);
        self
    }

    /// Users may do only what an ACL allows.
    #[must_use]
    pub fn acls(mut self) -> Self {
        self.acls = true;
        self
    }

    /// Formats the nodes and starts them.
    pub async fn start(self) -> Kafka {
        let kafka = tokio::task::spawn_blocking(|| Kafka::prepare(self)).await.expect("a cluster");
        for node in &kafka.nodes {
            node.spawn();
        }
        kafka.ready().await;
        kafka
    }
}

/// A cluster. Ends, with its folder, when dropped.
pub struct Kafka {
    nodes: Vec<Node>,
    properties: BTreeMap<String, String>,
    tls: Option<ServerTls>,
    names: AtomicU32,
    folder: Folder,
}

/// One broker and controller.
pub struct Node {
    process: Mutex<Option<Process>>,
    client_port: u32,
    internal_port: u32,
    config: PathBuf,
    log: PathBuf,
}

/// The process's common broker, for tests that leave it as it is.
pub async fn shared() -> &'static Kafka {
    static SHARED: OnceCell<Kafka> = OnceCell::const_new();
    SHARED.get_or_init(|| Kafka::builder().start()).await
}

impl Kafka {
    /// One with wishes.
    pub fn builder() -> Builder {
        Builder { nodes: 1, ..Builder::default() }
    }

    fn prepare(wish: Builder) -> Self {
        let folder = Folder::new("kafka");
        let tls = wish.tls.as_ref().map(|wish| ServerTls::make(folder.path(), wish));
        let ports: Vec<[u32; 3]> = (0..wish.nodes).map(|_| [free_port(), free_port(), free_port()]).collect();
        let voters: Vec<String> = ports.iter().enumerate().map(|(i, p)| format!("{}@127.0.0.1:{}", i + 1, p[2])).collect();
        let common = wish.common(tls.as_ref(), &voters.join(","), folder.path());
        let cluster_id = "bWlsbHN0cmVhbS10ZXN0cw";
        let mut nodes = Vec::new();
        for (i, [client, internal, controller]) in ports.into_iter().enumerate() {
            let id = i + 1;
            let data = folder.path().join(format!("data{id}"));
            let config = folder.path().join(format!("server{id}.properties"));
            let text = format!(
                "node.id={id}\nlog.dirs={}\n\
                 listeners=CLIENT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}\n\
                 advertised.listeners=CLIENT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal}\n{common}",
                data.display()
            );
            fs::write(&config, text).expect("server.properties");
            let mut format = java("64m");
            format.args(["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c"]).arg(&config);
            for (name, password) in &wish.users {
                format.arg("--add-scram").arg(format!("SCRAM-SHA-256=[name={name},password={password}]"));
            }
            process::run(&mut format);
            let log = folder.path().join(format!("server{id}.log"));
            nodes.push(Node { process: Mutex::new(None), client_port: client, internal_port: internal, config, log });
        }
        let properties = wish.client_properties(tls.as_ref());
        Self { nodes, properties, tls, names: AtomicU32::new(0), folder }
    }

    /// Waits until every running node is in the cluster and has leaders for what it leads.
    pub async fn ready(&self) {
        let running = self.nodes.iter().filter(|node| node.runs()).count();
        let servers = self.internal();
        eventually("Kafka to start", START_DEADLINE, async || {
            if let Some(dead) = self.nodes.iter().find(|node| node.started() && !node.runs()) {
                panic!("a Kafka node ended:\n{}", dead.tail());
            }
            let servers = servers.clone();
            let known = tokio::task::spawn_blocking(move || {
                let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", servers).create().expect("a client");
                client.fetch_metadata(None, Duration::from_secs(1)).map(|metadata| metadata.brokers().len())
            });
            match known.await.expect("a thread") {
                Ok(known) if known == running => Ok(()),
                other => Err(format!("{other:?} of {running} brokers")),
            }
        })
        .await;
    }

    /// One of the nodes, counted from 1.
    pub fn node(&self, id: usize) -> &Node {
        &self.nodes[id - 1]
    }

    /// `bootstrap.servers` for clients under test.
    pub fn brokers(&self) -> String {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.client_port)).collect::<Vec<_>>().join(",")
    }

    /// `bootstrap.servers` of the superuser's listener.
    pub fn internal(&self) -> String {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.internal_port)).collect::<Vec<_>>().join(",")
    }

    /// What `[queue.kafka]` must say besides user and password.
    pub fn properties(&self) -> BTreeMap<String, String> {
        self.properties.clone()
    }

    /// Certificates, where clients must speak TLS.
    pub fn tls(&self) -> Option<&ServerTls> {
        self.tls.as_ref()
    }

    /// A topic prefix that nobody else has.
    pub fn prefix(&self, name: &str) -> String {
        format!("{name}{}.", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Settings for a queue of one's own.
    pub fn settings(&self, name: &str) -> KafkaSettings {
        let replication = i32::try_from(self.nodes.len().min(3)).expect("few");
        let settings = KafkaSettings::new(self.brokers(), self.properties(), self.prefix(name), replication);
        KafkaSettings { gone_after: GONE_AFTER, ..settings }
    }

    /// A queue of one's own.
    pub fn queue(&self, name: &str) -> Arc<KafkaQueue> {
        KafkaQueue::open(self.settings(name)).expect("a queue")
    }

    /// The superuser.
    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", self.internal()).create().expect("an admin client")
    }

    /// Changes settings of a topic; the others go back to their defaults.
    pub async fn alter_topic(&self, topic: &str, settings: &[(&str, &str)]) {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (name, value) in settings {
            change = change.set(name, value);
        }
        let results = self.admin().alter_configs([&change], &AdminOptions::new()).await.expect("an answer");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Makes a topic as an administrator would.
    pub async fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let results = self.admin().create_topics([&new], &AdminOptions::new()).await.expect("an answer");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Deletes a topic behind everybody's back.
    pub async fn delete_topic(&self, topic: &str) {
        let results = self.admin().delete_topics(&[topic], &AdminOptions::new()).await.expect("an answer");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Runs one of Kafka's own tools by its class, as the superuser, and gives what it printed.
    pub async fn tool(&self, class: &str, arguments: &[&str]) -> String {
        let mut command = java("128m");
        command.arg(class).args(["--bootstrap-server", &self.internal()]).args(arguments);
        tokio::task::spawn_blocking(move || process::run(&mut command)).await.expect("a thread")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Node {
    fn spawn(&self) {
        let log = fs::File::options().create(true).append(true).open(&self.log).expect("server.log");
        let mut command = java("512m");
        command.arg("kafka.Kafka").arg(&self.config);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("server.log")).stderr(log);
        *self.process.lock().expect("lock") = Some(Process::spawn(command).expect("java"));
    }

    fn started(&self) -> bool {
        self.process.lock().expect("lock").is_some()
    }

    fn runs(&self) -> bool {
        self.process.lock().expect("lock").as_ref().is_some_and(|process| process.exited().is_none())
    }

    /// SIGKILL.
    pub fn kill(&self) {
        drop(self.process.lock().expect("lock").take());
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.process.lock().expect("lock").as_ref().expect("a running node").signal(signal);
    }

    /// Starts it again, without waiting.
    pub fn start(&self) {
        assert!(!self.runs(), "still running");
        self.spawn();
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Builder {
    fn common(&self, tls: Option<&ServerTls>, voters: &str, folder: &Path) -> String {
        let client = match (tls.is_some(), self.users.is_empty()) {
            (false, true) => "PLAINTEXT",
            (true, true) => "SSL",
            (false, false) => "SASL_PLAINTEXT",
            (true, false) => "SASL_SSL",
        };
        let replicas = self.nodes.min(3);
        let mut text = format!(
            "process.roles=broker,controller\ncontroller.quorum.voters={voters}\ncontroller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=INTERNAL\n\
             listener.security.protocol.map=CLIENT:{client},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             offsets.topic.replication.factor={replicas}\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor={replicas}\ntransaction.state.log.min.isr=1\n\
             share.coordinator.state.topic.replication.factor={replicas}\nshare.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=true\n\
             num.network.threads=2\nnum.io.threads=4\nnum.recovery.threads.per.data.dir=1\nlog.cleaner.dedupe.buffer.size=4194304\n\
             log.initial.task.delay.ms=500\nlog.retention.check.interval.ms=500\nfile.delete.delay.ms=1000\nlog.cleaner.backoff.ms=500\n\
             controlled.shutdown.enable=false\n"
        );
        if let Some(tls) = tls {
            let store = folder.join("server.pem");
            let pem = fs::read_to_string(&tls.key).expect("the key") + &fs::read_to_string(&tls.certificate).expect("the chain");
            super::files::write_private(&store, &pem);
            text += &format!(
                "listener.name.client.ssl.keystore.type=PEM\nlistener.name.client.ssl.keystore.location={}\n",
                store.display()
            );
        }
        if !self.users.is_empty() {
            let plain: String = self.users.iter().map(|(name, password)| format!(" user_{name}=\"{password}\"")).collect();
            text += &format!(
                "listener.name.client.sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN\n\
                 listener.name.client.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
                 listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required{plain};\n"
            );
        }
        if self.acls {
            text += "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nsuper.users=User:ANONYMOUS\n";
        }
        for (name, value) in &self.settings {
            text += &format!("{name}={value}\n");
        }
        text
    }

    fn client_properties(&self, tls: Option<&ServerTls>) -> BTreeMap<String, String> {
        let protocol = match (tls, self.users.is_empty()) {
            (None, true) => return BTreeMap::new(),
            (Some(_), true) => "SSL",
            (None, false) => "SASL_PLAINTEXT",
            (Some(_), false) => "SASL_SSL",
        };
        let mut properties = BTreeMap::from([("security.protocol".to_owned(), protocol.to_owned())]);
        if let Some(tls) = tls {
            properties.insert("ssl.ca.location".into(), tls.ca.display().to_string());
        }
        if let Some((name, password)) = self.users.first() {
            properties.insert("sasl.mechanism".into(), "SCRAM-SHA-256".into());
            properties.insert("sasl.username".into(), name.clone());
            properties.insert("sasl.password".into(), password.clone());
        }
        properties
    }
}

/// A JVM that starts soon rather than running fast.
fn java(heap: &str) -> Command {
    let mut command = Command::new("java");
    command.args([&format!("-Xmx{heap}"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]);
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]);
    command.arg("-cp").arg(format!("{}/*", library().display()));
    command
}

/// The jars, installed when they are not there.
fn library() -> &'static Path {
    static LIBRARY: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    LIBRARY.get_or_init(|| {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/install-kafka");
        PathBuf::from(process::run(&mut Command::new(tool)).trim())
    })
}
