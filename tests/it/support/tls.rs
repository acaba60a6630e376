//! Certificates for servers under test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use super::files::write_private;

/// A certificate authority of its own, and a server's certificate from it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// To be trusted: `sslrootcert`.
    pub ca: PathBuf,
    /// The server's chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What the certificate says.
#[derive(Clone, Debug)]
pub struct CertificateWish {
    /// Names and addresses that it is good for.
    pub names: Vec<String>,
    /// Its time is over.
    pub expired: bool,
    /// By no authority.
    pub self_signed: bool,
}

impl Default for CertificateWish {
    fn default() -> Self {
        Self { names: vec!["localhost".into(), "127.0.0.1".into()], expired: false, self_signed: false }
    }
}

impl ServerTls {
    /// Makes the files in a folder, readable by servers.
    pub fn make(folder: &Path, wish: &CertificateWish) -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "Test authority");
        let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
        let issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate().expect("a key");
        let mut server = CertificateParams::new(wish.names.clone()).expect("parameters");
        server.distinguished_name.push(DnType::CommonName, wish.names.first().map_or("nobody", String::as_str));
        if wish.expired {
            server.not_before = date_time_ymd(2020, 1, 1);
            server.not_after = date_time_ymd(2021, 1, 1);
        }
        let certificate = if wish.self_signed { server.self_signed(&key) } else { server.signed_by(&key, &issuer) };
        let certificate = certificate.expect("a certificate").pem();

        let files = Self { ca: folder.join("ca.crt"), certificate: folder.join("server.crt"), key: folder.join("server.key") };
        fs::write(&files.ca, ca_pem).expect("ca.crt");
        write_private(&files.certificate, &certificate);
        write_private(&files.key, &key.serialize_pem());
        files
    }
}
