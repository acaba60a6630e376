//! Every way of authentication, and what is said when it fails.

use millstream::ErrorKind;
use millstream::config::TlsMode;
use millstream::halt::HaltCode;
use millstream::postgres::{Mode, PgClient, ServerError, Side};

use super::{role, sql, value};
use crate::support::postgres::PgServer;

const RULES: &str = "\
local all postgres trust
host all scram 127.0.0.1/32 scram-sha-256
host all hashed 127.0.0.1/32 md5
host all clear 127.0.0.1/32 password
host all unwanted 127.0.0.1/32 reject
";

async fn server() -> PgServer {
    let server = PgServer::builder().hba(RULES).start().await;
    let database = server.database("postgres");
    database.execute("CREATE ROLE scram LOGIN PASSWORD 'pässwörd'").await;
    database.execute("CREATE ROLE clear LOGIN PASSWORD 'in clear'").await;
    database.execute("CREATE ROLE unwanted LOGIN").await;
    database.execute("SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'hashed'").await;
    server
}

#[tokio::test]
async fn passwords_open_what_they_should() {
    let server = server().await;
    for (user, password) in [("scram", "pässwörd"), ("hashed", "hashed"), ("clear", "in clear")] {
        let mut client = sql(&role(&server, user, Some(password), TlsMode::Disable)).await.unwrap();
        assert_eq!(value(&mut client, "SELECT current_user").await, user);
    }
    let mut client = sql(&server.database("postgres").connect_as_superuser()).await.unwrap();
    assert_eq!(value(&mut client, "SELECT current_user").await, "postgres");
}

#[tokio::test]
async fn a_refusal_is_a_denial_of_its_side_and_names_no_password() {
    let server = server().await;
    for (user, password) in
        [("scram", "wrong"), ("hashed", "wrong"), ("clear", "wrong"), ("unwanted", "wrong"), ("missing", "wrong")]
    {
        let error = sql(&role(&server, user, Some(password), TlsMode::Disable)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::SourceDenied), "{error}");
        assert!(error.to_string().contains(user), "{error}");
        assert!(!format!("{error:?}").contains(password), "{error:?}");
        assert!(ServerError::find(&error).unwrap().sqlstate.starts_with("28"), "{error}");
    }
    let to = role(&server, "scram", None, TlsMode::Disable);
    let error = PgClient::connect(&to, Mode::Sql, Side::Replica).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::ReplicaDenied));
    assert!(error.to_string().contains("none is configured"), "{error}");
}

#[tokio::test]
async fn a_missing_database_and_a_missing_server_differ() {
    let server = server().await;
    let mut to = server.database("nowhere").connect_as_superuser();
    assert_eq!(sql(&to).await.unwrap_err().kind(), ErrorKind::Config);
    to.port += 1;
    assert_eq!(sql(&to).await.unwrap_err().kind(), ErrorKind::Connection);
    server.stop().await;
    let to = role(&server, "scram", Some("pässwörd"), TlsMode::Disable);
    assert_eq!(sql(&to).await.unwrap_err().kind(), ErrorKind::Connection);
}
