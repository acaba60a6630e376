//! HTTP: who is answered, what metrics are called, limits.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use millstream::config::{Config, Environment};
use millstream::control::Control;
use millstream::http::{Guard, router};
use millstream::metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;

use super::NOWHERE;
use crate::support::daemon::Site;
use crate::support::wait::until;

fn config(token: bool) -> Config {
    let text = NOWHERE.replace("{folder}", "/tmp").replace("{http}", "127.0.0.1:1");
    let token = if token { vec![("MILLSTREAM__HTTP__TOKEN", "0123456789abcdef-canary")] } else { Vec::new() };
    Config::parse(std::path::Path::new("x.toml"), &text, &Environment::of(token)).unwrap()
}

async fn ask(token: bool, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let config = config(token);
    let control = Arc::new(Control::new(&config, &["capture", "apply"]).0);
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let router = router(control, Guard::new(config.http.as_ref().unwrap()));
    let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_foreign_host_is_not_served() {
    for path in ["/healthz", "/readyz", "/status", "/metrics", "/nothing"] {
        assert_eq!(ask(false, path, &[("host", "evil.example")]).await.0, StatusCode::MISDIRECTED_REQUEST, "{path}");
        assert_ne!(ask(false, path, &[("host", "localhost:1")]).await.0, StatusCode::MISDIRECTED_REQUEST, "{path}");
    }
    assert_eq!(ask(false, "/nothing", &[("host", "localhost")]).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn with_a_token_only_healthz_answers_without() {
    let bearer = ("authorization", "Bearer 0123456789abcdef-canary");
    assert_eq!(ask(true, "/healthz", &[("host", "localhost")]).await.0, StatusCode::OK);
    for path in ["/readyz", "/status", "/metrics", "/nothing"] {
        let (code, body) = ask(true, path, &[("host", "localhost")]).await;
        assert_eq!(code, StatusCode::UNAUTHORIZED, "{path}");
        assert!(!body.contains("canary"));
        let (code, body) = ask(true, path, &[("host", "localhost"), bearer]).await;
        assert_ne!(code, StatusCode::UNAUTHORIZED, "{path}");
        assert!(!body.contains("canary"));
    }
}

#[test]
fn every_metric_is_documented_and_follows_the_conventions() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    for (name, kind, help) in metrics::ALL {
        assert!(page.contains(&format!("| `{name}` |")), "{name} is not in docs/operations.md");
        assert!(help.ends_with('.'), "{name}");
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_tells_metrics_and_a_versioned_status() {
    let site = Site::new(NOWHERE);
    let daemon = site.start();
    until("/status", Duration::from_secs(20), async || site.status().await.is_some()).await;
    let status = site.status().await.unwrap();
    assert_eq!(status["version"], 1);
    assert_eq!(status["daemon"]["pid"], daemon.pid());
    assert_eq!(status["sources"]["shop"]["retained"]["budget_bytes"], 50_u64 << 30);
    assert_eq!(status["replicas"]["reports"]["source"], "shop");
    until("a halt", Duration::from_secs(20), async || {
        site.status().await.is_some_and(|status| status["sources"]["shop"]["halt"]["code"] == "not_initialized")
    })
    .await;
    let (_, text) = site.get("/metrics").await.unwrap();
    for part in [
        "# TYPE millstream_ready gauge",
        "millstream_ready 0",
        "millstream_stream_halted{side=\"source\",name=\"shop\",code=\"not_initialized\"} 1",
        "millstream_source_retain_budget_bytes{source=\"shop\"} 53687091200",
        "millstream_captured_changes_total{source=\"shop\"} 0",
        "millstream_replica_live{replica=\"reports\",source=\"shop\"} 0",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
    ] {
        assert!(text.contains(part), "'{part}' is not in:\n{text}");
    }

    // A client that says nothing is let go; a head without end is refused.
    let port = status_port(&site);
    let mut silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut endless = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    endless.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}", "a".repeat(64 << 10)).as_bytes()).await.unwrap();
    for stream in [&mut silent, &mut endless] {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection is still open");
    }
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

fn status_port(site: &Site) -> u16 {
    let text = std::fs::read_to_string(site.configuration()).unwrap();
    let listen = text.lines().find_map(|line| line.strip_prefix("listen = \"")).unwrap();
    listen.trim_end_matches('"').rsplit(':').next().unwrap().parse().unwrap()
}
