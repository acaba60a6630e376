//! Who may ask: the Host header against DNS rebinding, the token off loopback.
//!
//! A browser that was led to a name which now points to this address sends that name as Host; so only `localhost`, plain addresses and
//! configured names are answered. The token is compared in constant time.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::config::HttpConfig;

/// The rules.
pub struct Guard {
    token: Option<SecretString>,
    hosts: Vec<String>,
}

impl Guard {
    /// From the configuration.
    #[must_use]
    pub fn new(config: &HttpConfig) -> Self {
        Self { token: config.token.clone(), hosts: config.hosts.clone() }
    }

    fn host_is_ours(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next().and_then(|value| value.to_str().ok()), hosts.next()) else { return false };
        let name = name_of(host);
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn token_fits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(given) = given.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        // Digests are compared, so how long it takes says nothing about the token.
        Sha256::digest(given.trim().as_bytes()) == Sha256::digest(token.expose_secret().as_bytes())
    }
}

/// A Host header without its port.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if !guard.host_is_ours(request.headers()) {
        let text = "this Host is not served; add it to http.hosts\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    if request.uri().path() != "/healthz" && !guard.token_fits(request.headers()) {
        let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
        return (StatusCode::UNAUTHORIZED, challenge, "the token of http.token_file is needed\n").into_response();
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, authorization: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a header"));
        if let Some(text) = authorization {
            headers.insert(header::AUTHORIZATION, text.parse().expect("a header"));
        }
        headers
    }

    #[test]
    fn only_addresses_and_known_names_are_answered() {
        let guard = Guard { token: None, hosts: vec!["ms.example".to_owned()] };
        for host in ["localhost", "localhost:8321", "127.0.0.1:8321", "[::1]:8321", "10.0.0.7", "MS.example:80"] {
            assert!(guard.host_is_ours(&headers(host, None)), "{host}");
        }
        for host in ["evil.example", "evil.example:8321", "localhost.evil.example", ""] {
            assert!(!guard.host_is_ours(&headers(host, None)), "{host}");
        }
        assert!(!guard.host_is_ours(&HeaderMap::new()));
    }

    #[test]
    fn the_token_must_fit() {
        let guard = Guard { token: Some("0123456789abcdef".into()), hosts: Vec::new() };
        assert!(guard.token_fits(&headers("localhost", Some("Bearer 0123456789abcdef"))));
        for wrong in [None, Some("Bearer x"), Some("0123456789abcdef"), Some("Basic 0123456789abcdef")] {
            assert!(!guard.token_fits(&headers("localhost", wrong)), "{wrong:?}");
        }
    }
}
