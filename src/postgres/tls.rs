//! TLS as libpq's `sslmode` has it, on rustls (PostgreSQL documentation, "SSL Session Encryption", "SSL Mode Descriptions").

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use sha2::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::RsaSsaPssParams;

use super::frame::malformed;
use super::socket::Socket;
use super::verify;
use crate::config::{PgConnect, TlsMode};
use crate::error::{Error, ErrorKind, Result};
use crate::task::ended_early;

/// `SSLRequest`: length 8, code 80877103.
pub(super) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Asks for TLS as the configuration says, and makes it.
///
/// Exactly one byte is read in the clear. Whatever somebody slipped in behind it goes to TLS, which refuses it (CVE-2021-23222).
///
/// # Errors
/// [`ErrorKind::Config`] when there is no TLS though there must be, or the certificate does not pass.
pub async fn negotiate(mut stream: TcpStream, to: &PgConnect, host: &str) -> Result<Socket> {
    let mode = to.tls_mode();
    if mode == TlsMode::Disable {
        return Ok(Socket::Tcp(stream));
    }
    stream.write_all(&SSL_REQUEST).await?;
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if mode == TlsMode::Prefer => return Ok(Socket::Tcp(stream)),
        b'N' => {
            let message = "the server offers no TLS (ssl=off, or something between strips it), and sslmode asks for it";
            return Err(Error::new(ErrorKind::Config, message));
        }
        // An ErrorResponse in the clear is not shown: anybody on the way can have written it.
        b'E' => return Err(Error::new(ErrorKind::Connection, "the server answered SSLRequest with an error")),
        other => return Err(malformed(format!("byte {other:#04x} in answer to SSLRequest"))),
    }
    let config = client_config(to, mode).await?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|e| Error::new(ErrorKind::Config, format!("'{host}' is no name that a certificate can have")).with_source(e))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map(|stream| Socket::Tls(Box::new(stream))).map_err(|e| handshake_failed(e, mode))
}

fn handshake_failed(error: std::io::Error, mode: TlsMode) -> Error {
    // rustls puts its own errors inside `InvalidData`; everything else is the network's.
    if error.kind() != std::io::ErrorKind::InvalidData {
        return Error::new(ErrorKind::Connection, "the connection ended during the TLS handshake").with_source(error);
    }
    let keys = match mode {
        TlsMode::VerifyCa | TlsMode::VerifyFull => " (see sslmode and sslrootcert)",
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => "",
    };
    Error::new(ErrorKind::Config, format!("TLS with the server failed{keys}")).with_source(error)
}

async fn client_config(to: &PgConnect, mode: TlsMode) -> Result<ClientConfig> {
    let to = to.clone();
    // Reading certificates is file I/O, and the system's are many.
    tokio::task::spawn_blocking(move || build_config(&to, mode)).await.map_err(|e| ended_early("reading certificates", &e))?
}

fn build_config(to: &PgConnect, mode: TlsMode) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |e: rustls::Error| Error::new(ErrorKind::Config, "TLS cannot be set up").with_source(e);
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().map_err(failed)?;
    let builder = match mode {
        TlsMode::VerifyFull => builder.with_root_certificates(roots(to)?),
        TlsMode::VerifyCa => builder.dangerous().with_custom_certificate_verifier(verify::chain_only(roots(to)?, provider)?),
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
            builder.dangerous().with_custom_certificate_verifier(verify::nothing(provider))
        }
    };
    let mut config = with_client_certificate(builder, to)?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

/// `sslrootcert` alone when it is given, otherwise the system's certificates.
fn roots(to: &PgConnect) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let Some(path) = &to.root_certificate else {
        let native = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(native.certs);
        return Ok(store);
    };
    let bad = |what: String| Error::new(ErrorKind::Config, format!("sslrootcert {}: {what}", path.display()));
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))? {
        store.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
    }
    if store.is_empty() { Err(bad("holds no certificate".to_owned())) } else { Ok(store) }
}

fn with_client_certificate(builder: ConfigBuilder<ClientConfig, WantsClientCert>, to: &PgConnect) -> Result<ClientConfig> {
    let Some((certificate, key)) = &to.client_certificate else {
        return Ok(builder.with_no_client_auth());
    };
    let bad = |what: &str, path: &std::path::Path, e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Config, format!("{what} {}: {e}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|found| found.collect::<std::result::Result<Vec<_>, _>>())
        .map_err(|e| bad("sslcert", certificate, &e))?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("sslkey", key, &e))?;
    builder.with_client_auth_cert(chain, key_der).map_err(|e| bad("sslcert", certificate, &e))
}

/// The `tls-server-end-point` channel binding of a connection (RFC 5929, section 4.1): the certificate hashed with its own signature's hash, SHA-256 in
/// place of MD5 and SHA-1. `None` without TLS, or when the signature has no single hash (Ed25519): PostgreSQL cannot bind then either.
#[must_use]
pub fn server_end_point(socket: &Socket) -> Option<Vec<u8>> {
    let Socket::Tls(stream) = socket else {
        return None;
    };
    end_point_hash(stream.get_ref().1.peer_certificates()?.first()?)
}

fn end_point_hash(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let algorithm = &certificate.signature_algorithm;
    let oid = algorithm.algorithm.to_id_string();
    let oid = if oid == "1.2.840.113549.1.1.10" {
        let parameters = algorithm.parameters.as_ref()?;
        RsaSsaPssParams::try_from(parameters).ok()?.hash_algorithm_oid().to_id_string()
    } else {
        oid
    };
    Some(match oid.as_str() {
        // md5WithRSA, sha1WithRSA, sha256WithRSA, ecdsa-with-SHA1, ecdsa-with-SHA256; the hashes SHA-1 and SHA-256 for RSASSA-PSS
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.3.14.3.2.26"
        | "2.16.840.1.101.3.4.2.1" => sha2::Sha256::digest(der).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => sha2::Sha384::digest(der).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => sha2::Sha512::digest(der).to_vec(),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => sha2::Sha224::digest(der).to_vec(),
        _ => return None,
    })
}
