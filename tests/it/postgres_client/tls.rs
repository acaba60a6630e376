//! TLS off or unverified must fail unless asked for by name (threat 6); SCRAM is bound to the certificate.

use std::fs;
use std::path::PathBuf;

use millstream::ErrorKind;
use millstream::config::{PgConnect, TlsMode};
use millstream::halt::HaltCode;
use millstream::postgres::sql::{self as ordinary, Side};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::tls_proxy::{Tamper, TlsProxy};
use super::{role, sql, value};
use crate::support::files::{Folder, write_private};
use crate::support::postgres::PgServer;
use crate::support::tls::{CertificateWish, ServerTls};

const ALL: [TlsMode; 5] = [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull];
const RULES: &str = "\
local all postgres trust
host all postgres 127.0.0.1/32 trust
host all scram 127.0.0.1/32 scram-sha-256
";

async fn server(wish: CertificateWish) -> PgServer {
    let server = PgServer::builder().tls(wish).hba(RULES).start().await;
    server.database("postgres").execute("CREATE ROLE scram LOGIN PASSWORD 'secret'").await;
    server
}

fn to(server: &PgServer, tls: TlsMode, root: Option<PathBuf>) -> PgConnect {
    PgConnect { root_certificate: root, ..role(server, "postgres", None, tls) }
}

const ENCRYPTED: &str = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Which modes get through, and that they are encrypted then: by our own client, which capture and the first copy read with, and through sqlx, which apply,
/// `init`, `check` and the first copy write with.
async fn pass(server: &PgServer, root: Option<PathBuf>) -> Vec<TlsMode> {
    let mut passed = Vec::new();
    for mode in ALL {
        let to = to(server, mode, root.clone());
        let own = match sql(&to).await {
            Ok(mut client) => Ok(value(&mut client, ENCRYPTED).await),
            Err(error) => Err(error),
        };
        let mut outcomes = vec![("own", own)];
        for side in [Side::Source, Side::Replica] {
            outcomes.push(("sqlx", through_sqlx(&to, side).await));
        }
        let through: Vec<bool> = outcomes.iter().map(|(_, outcome)| outcome.is_ok()).collect();
        assert!(through.iter().all(|passes| *passes == through[0]), "{mode:?}: the clients differ: {outcomes:?}");
        for (client, outcome) in outcomes {
            match outcome {
                Ok(encrypted) => assert_eq!(encrypted == "true", mode != TlsMode::Disable, "{client} {mode:?}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Config, "{client} {mode:?}: {error}"),
            }
        }
        if through[0] {
            passed.push(mode);
        }
    }
    passed
}

/// What the server says of the session's encryption.
async fn through_sqlx(to: &PgConnect, side: Side) -> millstream::Result<String> {
    let mut session = ordinary::connect(to, side, "test").await?;
    Ok(sqlx::query_scalar(ENCRYPTED).fetch_one(&mut session).await.expect("an answer"))
}

#[tokio::test]
async fn each_mode_takes_what_it_should_and_no_more() {
    use TlsMode::{Disable, Prefer, Require, VerifyCa};
    let good = server(CertificateWish::default()).await;
    let ca = good.tls().ca.clone();
    assert_eq!(pass(&good, Some(ca)).await, ALL);
    assert_eq!(pass(&good, None).await, [Disable, Prefer, Require], "the system does not know this authority");

    let stranger = Folder::new("stranger");
    let other_ca = ServerTls::make(stranger.path(), &CertificateWish::default()).ca;
    // With a root certificate, require verifies the chain, as libpq does.
    assert_eq!(pass(&good, Some(other_ca)).await, [Disable, Prefer]);

    let elsewhere = server(CertificateWish { names: vec!["elsewhere.example".into()], ..CertificateWish::default() }).await;
    assert_eq!(pass(&elsewhere, Some(elsewhere.tls().ca.clone())).await, [Disable, Prefer, Require, VerifyCa]);

    let expired = server(CertificateWish { expired: true, ..CertificateWish::default() }).await;
    assert_eq!(pass(&expired, Some(expired.tls().ca.clone())).await, [Disable, Prefer]);
    assert_eq!(pass(&expired, None).await, [Disable, Prefer, Require]);

    let own = server(CertificateWish { self_signed: true, ..CertificateWish::default() }).await;
    assert_eq!(pass(&own, Some(own.tls().ca.clone())).await, [Disable, Prefer]);
    assert_eq!(pass(&own, None).await, [Disable, Prefer, Require]);
}

#[tokio::test]
async fn stripped_and_injected_tls_is_noticed() {
    let server = server(CertificateWish::default()).await;
    let through = |proxy: &TlsProxy, mode| PgConnect { port: proxy.port, ..to(&server, mode, Some(server.tls().ca.clone())) };

    let strip = TlsProxy::start(server.port(), Tamper::Strip).await;
    sql(&through(&strip, TlsMode::Prefer)).await.expect("prefer takes what it gets");
    assert_eq!(through_sqlx(&through(&strip, TlsMode::Prefer), Side::Replica).await.expect("prefer takes what it gets"), "false");
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let error = sql(&through(&strip, mode)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("offers no TLS"), "{error}");
        for side in [Side::Source, Side::Replica] {
            let error = through_sqlx(&through(&strip, mode), side).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("offers no TLS"), "{error}");
        }
    }
    let inject = TlsProxy::start(server.port(), Tamper::Inject).await;
    for mode in [TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyFull] {
        sql(&through(&inject, mode)).await.expect_err("messages in the clear behind the answer");
        through_sqlx(&through(&inject, mode), Side::Replica).await.expect_err("messages in the clear behind the answer");
    }
}

#[tokio::test]
async fn scram_is_bound_to_the_certificate() {
    let server = server(CertificateWish::default()).await;
    let scram = |port, mode| PgConnect { port, ..role(&server, "scram", Some("secret"), mode) };
    let mut client = sql(&scram(server.port(), TlsMode::Require)).await.unwrap();
    assert_eq!(value(&mut client, "SELECT current_user").await, "scram");

    // Without verification only the binding can notice somebody in the middle.
    let folder = Folder::new("middle");
    let own = ServerTls::make(folder.path(), &CertificateWish::default());
    let middle = TlsProxy::start(server.port(), Tamper::Middle { own, real: server.tls().clone() }).await;
    let unbound = PgConnect { port: middle.port, ..to(&server, TlsMode::Require, None) };
    sql(&unbound).await.expect("the proxy works where nothing binds");
    let error = sql(&scram(middle.port, TlsMode::Require)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::SourceDenied), "{error}");
    assert!(error.to_string().contains("channel binding"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let folder = Folder::new("client");
    let (ca, certificate, key) = client_certificate(&folder, "certified");
    let server = PgServer::builder()
        .tls(CertificateWish::default())
        .set("ssl_ca_file", &ca.display().to_string())
        .hba("local all postgres trust\nhostssl all certified 127.0.0.1/32 cert\n")
        .start()
        .await;
    server.database("postgres").execute("CREATE ROLE certified LOGIN").await;
    let without =
        PgConnect { root_certificate: Some(server.tls().ca.clone()), ..role(&server, "certified", None, TlsMode::VerifyFull) };
    assert_eq!(sql(&without).await.unwrap_err().kind(), ErrorKind::Halt(HaltCode::SourceDenied));
    assert_eq!(through_sqlx(&without, Side::Replica).await.unwrap_err().kind(), ErrorKind::Halt(HaltCode::ReplicaDenied));
    let with = PgConnect { client_certificate: Some((certificate, key)), ..without };
    let mut client = sql(&with).await.unwrap();
    let shown = "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(value(&mut client, shown).await, "/CN=certified");
    let mut session = ordinary::connect(&with, Side::Replica, "test").await.unwrap();
    let name: String = sqlx::query_scalar(shown).fetch_one(&mut session).await.unwrap();
    assert_eq!(name, "/CN=certified");
}

/// An authority's certificate, and a client's with its key.
fn client_certificate(folder: &Folder, user: &str) -> (PathBuf, PathBuf, PathBuf) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_path = folder.path().join("clients.crt");
    fs::write(&ca_path, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut client = CertificateParams::new(Vec::new()).unwrap();
    client.distinguished_name = rcgen::DistinguishedName::new();
    client.distinguished_name.push(DnType::CommonName, user);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = client.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let (certificate_path, key_path) = (folder.path().join("client.crt"), folder.path().join("client.key"));
    write_private(&certificate_path, &certificate.pem());
    write_private(&key_path, &key.serialize_pem());
    (ca_path, certificate_path, key_path)
}
