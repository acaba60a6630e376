//! Somebody on the way who tampers with the start of TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::tls::ServerTls;

/// `SSLRequest`.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What somebody does.
#[derive(Clone)]
pub enum Tamper {
    /// Answers that there is no TLS.
    Strip,
    /// Answers yes, and puts messages in the clear behind the answer.
    Inject,
    /// Stands in the middle with a certificate of its own.
    Middle {
        /// What the client sees.
        own: ServerTls,
        /// What the real server is trusted by.
        real: ServerTls,
    },
}

/// Listens until dropped.
pub struct TlsProxy {
    /// On 127.0.0.1.
    pub port: u16,
    task: JoinHandle<()>,
}

impl TlsProxy {
    /// In front of a server's port.
    pub async fn start(target: u16, tamper: Tamper) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let tamper = tamper.clone();
                // A connection that ends in an error is what these tests are about; the client's side asserts it.
                tokio::spawn(async move { drop(serve(client, target, tamper).await) });
            }
        });
        Self { port, task }
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, target: u16, tamper: Tamper) -> std::io::Result<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    assert_eq!(request, SSL_REQUEST, "a client that does not ask for TLS");
    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
    match tamper {
        Tamper::Strip => {
            client.write_all(b"N").await?;
            copy_bidirectional(&mut client, &mut server).await?;
        }
        Tamper::Inject => {
            server.write_all(&SSL_REQUEST).await?;
            assert_eq!(server.read_u8().await?, b'S');
            // AuthenticationOk in the clear.
            client.write_all(b"SR\0\0\0\x08\0\0\0\0").await?;
            copy_bidirectional(&mut client, &mut server).await?;
        }
        Tamper::Middle { own, real } => {
            client.write_all(b"S").await?;
            let mut client = acceptor(&own).accept(client).await?;
            server.write_all(&SSL_REQUEST).await?;
            assert_eq!(server.read_u8().await?, b'S');
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let mut server = connector(&real.ca).connect(name, server).await?;
            copy_bidirectional(&mut client, &mut server).await?;
        }
    }
    Ok(())
}

fn acceptor(tls: &ServerTls) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(&tls.certificate).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&tls.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsAcceptor::from(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap()))
}

fn connector(ca: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
