//! Who is let in: programs that know the token, and no page in a browser.
//!
//! A page can send requests to loopback. It cannot know the token, so nothing is done for it; but what it asks is refused before
//! that, by the origin that browsers name, and by the host where a name of its own leads to this machine (DNS rebinding).

use std::net::SocketAddr;

use axum::http::{HeaderMap, header};

use crate::refusal::{Refusal, Result};

/// What a request must show.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Of the token: digests take the same time to compare wherever they differ.
    token: blake3::Hash,
    /// The names by which the service may be called.
    hosts: [String; 2],
}

impl Guard {
    /// Lets in who shows `token` at `address`.
    pub fn new(token: &str, address: SocketAddr) -> Self {
        Self {
            token: blake3::hash(token.as_bytes()),
            hosts: [address.to_string(), format!("localhost:{}", address.port())],
        }
    }

    /// Whether a request with these headers is let in.
    ///
    /// # Errors
    /// [`Refusal::Foreign`], [`Refusal::Token`].
    pub fn admit(&self, headers: &HeaderMap) -> Result<()> {
        if let Some(origin) = headers.get(header::ORIGIN) {
            let reason = format!("the request comes from {origin:?}");
            return Err(Refusal::Foreign(reason));
        }
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        if !host.is_some_and(|host| self.hosts.iter().any(|own| own == host)) {
            return Err(Refusal::Foreign(format!("the request is for {host:?}")));
        }
        let shown = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match shown.map(|token| blake3::hash(token.as_bytes())) {
            Some(shown) if shown == self.token => Ok(()),
            _ => Err(Refusal::Token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(pairs: &[(header::HeaderName, &str)]) -> Result<()> {
        let address: SocketAddr = "127.0.0.1:1234".parse().unwrap();
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()));
        Guard::new("secret", address).admit(&pairs.collect())
    }

    #[test]
    fn who_shows_the_token_is_let_in_and_no_page() {
        let token = (header::AUTHORIZATION, "Bearer secret");
        for host in ["127.0.0.1:1234", "localhost:1234"] {
            admit(&[(header::HOST, host), token.clone()]).unwrap();
        }
        let host = (header::HOST, "127.0.0.1:1234");
        for wrong in ["Bearer secreu", "Bearer ", "secret", "Basic secret"] {
            let refused = admit(&[host.clone(), (header::AUTHORIZATION, wrong)]);
            assert!(matches!(refused, Err(Refusal::Token)), "{wrong}");
        }
        assert!(matches!(
            admit(std::slice::from_ref(&host)),
            Err(Refusal::Token)
        ));
        for foreign in [
            "evil.example:1234",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.0.0.1:1234.evil.example",
        ] {
            let refused = admit(&[(header::HOST, foreign), token.clone()]);
            assert!(matches!(refused, Err(Refusal::Foreign(_))), "{foreign}");
        }
        for origin in ["https://evil.example", "http://127.0.0.1:1234", "null"] {
            let refused = admit(&[host.clone(), token.clone(), (header::ORIGIN, origin)]);
            assert!(matches!(refused, Err(Refusal::Foreign(_))), "{origin}");
        }
    }
}
