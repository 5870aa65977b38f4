//! Where to listen, and what to fall back to when that is not possible.

use std::fmt;
use std::io;
use std::net::IpAddr;

use engine_builtin::BuiltinError;
use tokio::net::TcpListener;
use tracing::warn;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// # Errors
    /// The address is taken, is not this machine's, or is none.
    pub(crate) async fn bind(&self) -> io::Result<TcpListener> {
        TcpListener::bind((self.host.as_str(), self.port)).await
    }

    pub(crate) fn not_bound(&self, source: io::Error) -> BuiltinError {
        BuiltinError::failed(format!("could not listen for HTTP on {self}"), source)
    }

    /// Like [`bind`](Self::bind), at another address if this one cannot be had. What was meant for this machine only is
    /// never opened to others by that.
    pub(crate) async fn bind_or(&self, fallback: Option<&Self>) -> Result<TcpListener, BuiltinError> {
        let error = match self.bind().await {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        match fallback.filter(|fallback| *fallback != self && self.may_become(fallback)) {
            None => Err(self.not_bound(error)),
            Some(fallback) => {
                warn!(%error, address = %self, %fallback, "the stored HTTP address cannot be used; using config.yaml's");
                fallback.bind().await.map_err(|source| fallback.not_bound(source))
            }
        }
    }

    fn may_become(&self, other: &Self) -> bool {
        !self.is_loopback() || other.is_loopback()
    }

    fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    #[test]
    fn loopback_stays_loopback() {
        for host in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost", "LocalHost"] {
            assert!(at(host, 1).is_loopback(), "{host}");
            assert!(!at(host, 1).may_become(&at("0.0.0.0", 1)), "{host}");
            assert!(at("10.0.0.1", 1).may_become(&at(host, 1)), "{host}");
        }
        assert!(!at("0.0.0.0", 1).is_loopback() && !at("::", 1).is_loopback());
    }

    #[tokio::test]
    async fn an_address_that_is_taken_falls_back() {
        let taken = at("127.0.0.1", 0).bind().await.expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let listener = at("127.0.0.1", port).bind_or(Some(&at("127.0.0.1", 0))).await.expect("the fallback");
        assert_ne!(listener.local_addr().expect("an address").port(), port);
        at("127.0.0.1", port).bind_or(Some(&at("0.0.0.0", 0))).await.expect_err("not from loopback to everywhere");
        at("127.0.0.1", port).bind_or(None).await.expect_err("nothing to fall back to");
    }
}
