//! Startup and authentication (PostgreSQL documentation, "Message Flow", "SASL Authentication").
//!
//! Progression: `StartupMessage` → one authentication exchange → `AuthenticationOk` → `BackendKeyData` and parameters → `ReadyForQuery`.
//! Once SCRAM has begun, `AuthenticationOk` counts only after the server has proven that it knows the password as well.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};

use super::connection::Connection;
use super::frame::{Frame, Payload, malformed};
use super::session::{APPLICATION_NAME, SETTINGS, SETTINGS_OF_SQLX};
use super::{Mode, refusal, tls};
use crate::config::PgConnect;
use crate::error::{Error, ErrorKind, Result};

/// Takes a fresh connection to its first `ReadyForQuery`; gives the backend's process id.
///
/// # Errors
/// The server's; a denial when the password is missing or the method is not supported.
pub async fn start(connection: &mut Connection, to: &PgConnect, mode: Mode, extra: &[(&str, &str)]) -> Result<i32> {
    let identity = [("user", to.user.as_str()), ("database", to.database.as_str()), ("application_name", APPLICATION_NAME)];
    let replication: &[(&str, &str)] = match mode {
        Mode::Sql => &[],
        // A shorter wal_sender_timeout than the default: keepalives come at half of it even while the walsender decodes what is not
        // published, and a dead client's slot is free sooner.
        Mode::Replication => &[("replication", "database"), ("wal_sender_timeout", "30s")],
    };
    let all = identity.iter().chain(replication).chain(SETTINGS_OF_SQLX).chain(SETTINGS).chain(extra);
    put(connection, |out| frontend::startup_message(all.copied(), out))?;
    connection.send().await?;
    authenticate(connection, to).await?;
    connection.authenticated();
    let mut process_id = 0;
    loop {
        let frame = connection.receive().await?;
        match frame.tag {
            b'K' => process_id = Payload::new(&frame.payload).i32()?,
            b'Z' => return Ok(process_id),
            // NegotiateProtocolVersion: only for minor versions that we do not ask for.
            _ => return Err(frame.unexpected("the session was starting")),
        }
    }
}

async fn authenticate(connection: &mut Connection, to: &PgConnect) -> Result<()> {
    loop {
        let (method, rest) = request(connection).await?;
        // AuthenticationOk, CleartextPassword, MD5Password, SASL
        match method {
            0 => return Ok(()),
            3 => cleartext(connection, to).await?,
            5 => {
                let salt = Payload::new(&rest).array::<4>()?;
                let hash = md5_hash(to.user.as_bytes(), password(connection, to)?.expose_secret().as_bytes(), salt);
                put(connection, |out| frontend::password_message(hash.as_bytes(), out))?;
                connection.send().await?;
            }
            10 => {
                scram(connection, to, &rest).await?;
                return match request(connection).await? {
                    (0, _) => Ok(()),
                    (other, _) => Err(malformed(format!("authentication request {other} after SCRAM"))),
                };
            }
            2 | 7 | 9 => {
                return Err(denied(
                    connection,
                    "the server asks for GSSAPI, Kerberos or SSPI, which Millstream does not speak; use scram-sha-256 in pg_hba.conf",
                ));
            }
            other => {
                return Err(denied(
                    connection,
                    &format!(
                        "the server asks for authentication method {other}, which is unknown; use scram-sha-256 in pg_hba.conf"
                    ),
                ));
            }
        }
    }
}

async fn cleartext(connection: &mut Connection, to: &PgConnect) -> Result<()> {
    if !connection.socket().is_private() {
        let message = "the server asks for the password in clear text over a connection without TLS; it was not sent. \
                       Use scram-sha-256 in pg_hba.conf, or sslmode=verify-full";
        return Err(denied(connection, message));
    }
    let password = password(connection, to)?;
    put(connection, |out| frontend::password_message(password.expose_secret().as_bytes(), out))?;
    connection.send().await
}

async fn scram(connection: &mut Connection, to: &PgConnect, mechanisms: &[u8]) -> Result<()> {
    let (mut plain, mut plus) = (false, false);
    for mechanism in mechanisms.split(|&byte| byte == 0) {
        plain |= mechanism == SCRAM_SHA_256.as_bytes();
        plus |= mechanism == SCRAM_SHA_256_PLUS.as_bytes();
    }
    let password = password(connection, to)?;
    let end_point = tls::server_end_point(connection.socket());
    // RFC 5802, section 6: "y" says that we could bind but the server did not offer it, so that an offer removed on the way is noticed.
    let (mechanism, binding) = match end_point {
        Some(hash) if plus => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
        Some(_) if plain => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None if plain => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        _ => {
            return Err(denied(
                connection,
                "the server offers no SASL mechanism that Millstream speaks (SCRAM-SHA-256, SCRAM-SHA-256-PLUS)",
            ));
        }
    };
    let mut exchange = ScramSha256::new(password.expose_secret().as_bytes(), binding);
    put(connection, |out| frontend::sasl_initial_response(mechanism, exchange.message(), out))?;
    connection.send().await?;
    let first = sasl(connection, 11).await?;
    exchange.update(&first).map_err(|e| scram_failed(connection, e))?;
    put(connection, |out| frontend::sasl_response(exchange.message(), out))?;
    connection.send().await?;
    let last = sasl(connection, 12).await?;
    exchange.finish(&last).map_err(|e| scram_failed(connection, e))
}

/// The server did not prove that it knows the password, or speaks another SCRAM: an impostor may be there.
fn scram_failed(connection: &Connection, error: std::io::Error) -> Error {
    denied(connection, "SCRAM authentication failed on the server's part").with_source(error)
}

async fn sasl(connection: &mut Connection, step: i32) -> Result<bytes::Bytes> {
    match request(connection).await? {
        (method, rest) if method == step => Ok(rest),
        (other, _) => Err(malformed(format!("authentication request {other} during SCRAM"))),
    }
}

/// The next authentication request: its number and what follows.
async fn request(connection: &mut Connection) -> Result<(i32, bytes::Bytes)> {
    let Frame { tag: b'R', payload } = connection.receive().await? else {
        return Err(malformed("something else than an authentication request"));
    };
    let method = Payload::new(&payload).i32()?;
    Ok((method, payload.slice(4..)))
}

fn password(connection: &Connection, to: &PgConnect) -> Result<SecretString> {
    let missing = || refusal::no_password(to, connection.side());
    to.password_now().ok_or_else(missing)
}

fn denied(connection: &Connection, message: &str) -> Error {
    Error::new(connection.side().denied(), message)
}

/// Adds a message; the only failure is a NUL inside a text or one beyond 2 GiB.
pub(super) fn put(connection: &mut Connection, message: impl FnOnce(&mut BytesMut) -> std::io::Result<()>) -> Result<()> {
    message(connection.output())
        .map_err(|e| Error::new(ErrorKind::Config, "a text that cannot be sent to PostgreSQL").with_source(e))
}
