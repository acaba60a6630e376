//! `millstream status`: asks the daemon and shows what it says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret as _;
use tokio::net::TcpStream;

use super::output::{print, print_line};
use super::{Exit, render};
use crate::config::{Config, ConfigFile, HttpConfig};
use crate::control::Status;
use crate::error::{Error, ErrorKind, Result};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream status --watch
  millstream status --json | jq '.replicas.reports.lag_seconds'

Exits with 0 when everything is live, 1 when something is halted, paused, copying or late,
3 when the daemon does not answer.";

/// A status document is far smaller.
const MAX_ANSWER_BYTES: usize = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

/// Arguments of `millstream status`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The document as JSON, with its version.
    #[arg(long)]
    json: bool,
    /// Shows it again every two seconds until interrupted.
    #[arg(long, short)]
    watch: bool,
    /// Prints nothing and exits with 0 when the daemon answers, whatever it says; for containers' health checks.
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    alive: bool,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    let Some(http) = config.http else {
        let message = "http.listen is \"off\", so the daemon cannot be asked; set it to \"127.0.0.1:8321\"";
        return Err(Error::new(ErrorKind::Config, message));
    };
    if arguments.watch {
        return watch(&http, &config.file, arguments.json).await;
    }
    let (document, status) = ask(&http).await?;
    if arguments.alive {
        return Ok(Exit::Good);
    }
    if arguments.json {
        print_line(&document)?;
    } else {
        print(&render::status(&status, &config.file))?;
    }
    Ok(if status.ready { Exit::Good } else { Exit::Bad })
}

async fn watch(http: &HttpConfig, file: &ConfigFile, json: bool) -> Result<Exit> {
    // One for the whole time: a signal that comes while nobody waits for one is not told later.
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let answer = tokio::select! {
            _ = &mut interrupted => return Ok(Exit::Good),
            answer = ask(http) => answer,
        };
        match (answer, json) {
            (Ok((document, _)), true) => print_line(&document)?,
            (Err(error), true) => print_line(&serde_json::json!({ "error": error.to_string() }).to_string())?,
            // Home, the page with every line cleared to its end, then the rest of the screen cleared: no flicker.
            (Ok((_, status)), false) => page(&render::status(&status, file))?,
            (Err(error), false) => page(&format!("{error}\n"))?,
        }
        tokio::select! {
            _ = &mut interrupted => return Ok(Exit::Good),
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}

fn page(text: &str) -> Result<()> {
    print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))
}

/// The document as it came, and read.
async fn ask(http: &HttpConfig) -> Result<(String, Status)> {
    let address = reachable(http.listen);
    let unreachable = |error: &dyn std::fmt::Display| {
        let message = format!("no daemon answers at http://{address} ({error}); is it running with this configuration?");
        Error::new(ErrorKind::Connection, message)
    };
    let exchange = tokio::time::timeout(DEADLINE, get(address, http));
    let (code, body) = exchange.await.map_err(|_| unreachable(&"no answer in time"))?.map_err(|error| unreachable(&error))?;
    match code {
        200 => {}
        401 => {
            let message =
                format!("the daemon at http://{address} wants another token than http.token_file of this configuration");
            return Err(Error::new(ErrorKind::Config, message));
        }
        code => return Err(unreachable(&format!("it answers {code}"))),
    }
    let status: Status = serde_json::from_str(&body).map_err(|error| unreachable(&format!("not a status: {error}")))?;
    if status.version > crate::control::model::VERSION {
        let message = format!("the daemon speaks status version {}; this program is older", status.version);
        // Not TooNew: it may be well or not, and this program cannot tell.
        return Err(Error::new(ErrorKind::Connection, message));
    }
    Ok((body, status))
}

/// A daemon that listens everywhere is asked on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn get(
    address: SocketAddr,
    http: &HttpConfig,
) -> std::result::Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = Request::get("/status").header("host", address.to_string());
    if let Some(token) = &http.token {
        request = request.header("authorization", format!("Bearer {}", token.expose_secret()));
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?.to_bytes();
    Ok((code, String::from_utf8(body.to_vec())?.trim_end().to_owned()))
}
