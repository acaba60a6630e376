//! A TCP proxy that misbehaves on demand.
//!
//! ```ignore
//! let proxy = Proxy::start(server.port()).await;
//! let site = Site::new(&pair_configuration(&source.url(), &replica.url_at(proxy.port()), queue));
//! proxy.set(Mode::Stall);                               // half-open: nothing moves, nothing closes
//! proxy.lose_answer_to(b"COMMIT");                      // forwarded and answered, but the client sees a reset
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What it does with traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes it on.
    Pass,
    /// Holds it: connections stand, new ones are accepted, and no byte moves until the mode changes.
    Stall,
    /// Closes every connection and every new one at once.
    Refuse,
    /// Passes each piece after a pause.
    Delay(Duration),
}

/// When a watched pattern strikes, seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The server never gets it.
    Before,
    /// The server gets it and answers; the client never learns.
    AnswerLost,
    /// Nothing moves on this connection any more, either way, and nothing closes it, whatever the server does: a router forgot it.
    Muted,
    /// The server gets what came before and keeps waiting for more on a connection whose client is gone: its host lost power.
    Orphaned,
}

#[derive(Clone)]
struct Watch {
    pattern: Vec<u8>,
    strike: Strike,
    /// How many times it still strikes.
    left: u64,
}

struct Shared {
    mode: watch::Sender<Mode>,
    /// Raised to reset all connections of the moment.
    generation: watch::Sender<u64>,
    pattern: Mutex<Option<Watch>>,
    strikes: AtomicU64,
    accepted: AtomicU64,
    /// Server sides without a client, kept open.
    orphans: Mutex<Vec<OwnedWriteHalf>>,
}

/// A listening proxy in front of one port.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes to `target` there.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            mode: watch::channel(Mode::Pass).0,
            generation: watch::channel(0).0,
            pattern: Mutex::new(None),
            strikes: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            orphans: Mutex::new(Vec::new()),
        });
        let task = tokio::spawn(accept(listener, target, Arc::clone(&shared)));
        Self { port, shared, task }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what it does.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
        if mode == Mode::Refuse {
            self.reset();
        }
    }

    /// Resets (RST) every connection that stands; new ones are as the mode says.
    pub fn reset(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Strikes the next `times` connections whose client sends these bytes.
    pub fn strike_on(&self, pattern: &[u8], strike: Strike, times: u64) {
        *self.shared.pattern.lock().expect("lock") = Some(Watch { pattern: pattern.to_vec(), strike, left: times });
    }

    /// The next answer to these bytes is lost, once.
    pub fn lose_answer_to(&self, pattern: &[u8]) {
        self.strike_on(pattern, Strike::AnswerLost, 1);
    }

    /// How often a pattern has struck.
    pub fn strikes(&self) -> u64 {
        self.shared.strikes.load(Ordering::Relaxed)
    }

    /// How many connections came.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.reset();
    }
}

async fn accept(listener: TcpListener, target: u16, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve(client, target, Arc::clone(&shared)));
    }
}

async fn serve(client: TcpStream, target: u16, shared: Arc<Shared>) {
    let mut generation = shared.generation.subscribe();
    generation.mark_unchanged();
    // Closed with data unread or with zero linger, the peer sees a reset.
    drop(client.set_zero_linger());
    drop(client.set_nodelay(true));
    if *shared.mode.borrow() == Mode::Refuse {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    drop(server.set_nodelay(true));
    drop(server.set_zero_linger());
    let struck = Arc::new(watch::channel(None).0);
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let up = pump(client_in, server_out, Arc::clone(&shared), Direction::Up, Arc::clone(&struck));
    let down = pump(server_in, client_out, Arc::clone(&shared), Direction::Down, struck);
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = generation.changed() => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: Arc<Shared>,
    direction: Direction,
    fate: Arc<watch::Sender<Option<Strike>>>,
) {
    let mut mode = shared.mode.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    // The end of the last piece: a pattern may be cut.
    let mut carry: Vec<u8> = Vec::new();
    loop {
        let read = from.read(&mut buffer).await;
        if *fate.borrow() == Some(Strike::Muted) {
            std::future::pending::<()>().await;
        }
        let Ok(count @ 1..) = read else { return };
        let piece = &buffer[..count];
        if mode.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
            return;
        }
        let now = *mode.borrow();
        if let Mode::Delay(pause) = now {
            tokio::time::sleep(pause).await;
        }
        if direction == Direction::Up {
            match struck(&shared, &mut carry, piece) {
                Some(Strike::Before) => return,
                Some(Strike::Orphaned) => return shared.orphans.lock().expect("lock").push(to),
                Some(Strike::AnswerLost) => drop(fate.send_replace(Some(Strike::AnswerLost))),
                Some(Strike::Muted) => {
                    fate.send_replace(Some(Strike::Muted));
                    std::future::pending::<()>().await;
                }
                None => {}
            }
        } else if *fate.borrow() == Some(Strike::AnswerLost) {
            // The server has answered; that is all that the client was waiting for.
            return;
        }
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}

fn struck(shared: &Shared, carry: &mut Vec<u8>, piece: &[u8]) -> Option<Strike> {
    let mut watched = shared.pattern.lock().expect("lock");
    let watch = watched.as_mut().filter(|watch| watch.left > 0)?;
    carry.extend_from_slice(piece);
    let hit = carry.windows(watch.pattern.len()).any(|window| window == watch.pattern);
    carry.drain(..carry.len().saturating_sub(watch.pattern.len()));
    if !hit {
        return None;
    }
    watch.left -= 1;
    carry.clear();
    shared.strikes.fetch_add(1, Ordering::Relaxed);
    Some(watch.strike)
}
