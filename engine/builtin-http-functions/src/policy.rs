//! Which URLs may be called with which secrets, and the resolver that sees to it that nothing else is connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use engine_builtin::{BoxFuture, ErrorBody};
use globset::GlobSet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::address::is_public;

/// How long the addresses of a name may take.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(10);

/// Asks for a name's addresses.
pub(crate) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

pub(crate) fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// Why a URL is not called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlRefused {
    #[error("`{url}` is no URL: {reason}")]
    Malformed { url: String, reason: String },
    #[error("`{scheme}` is neither http nor https")]
    Scheme { scheme: String },
    #[error("`{host}` is to be called without TLS, and `security.require_https` is true")]
    Unencrypted { host: String },
    #[error("`{host}` is not on `security.url_allowlist`")]
    NotAllowed { host: String },
    #[error("`{host}` has the private address {address}, and `security.block_private_ips` is true")]
    Private { host: String, address: IpAddr },
    #[error("the addresses of `{host}` could not be found: {reason}")]
    Unresolved { host: String, reason: String },
}

impl From<UrlRefused> for ErrorBody {
    fn from(refused: UrlRefused) -> Self {
        Self::new("url_validation_failed", refused.to_string())
    }
}

/// The `security` settings.
#[derive(Clone)]
pub(crate) struct Policy {
    pub(crate) allowed: GlobSet,
    /// Of the environment.
    pub(crate) variables: GlobSet,
    pub(crate) block_private: bool,
    pub(crate) require_https: bool,
    pub(crate) lookup: Lookup,
}

impl Policy {
    /// What the URL's text tells: all but the addresses of a name.
    pub(crate) fn check(&self, url: &Url) -> Result<(), UrlRefused> {
        let host = host_of(url);
        match url.scheme() {
            "https" => {}
            "http" if !self.require_https => {}
            "http" => return Err(UrlRefused::Unencrypted { host }),
            scheme => return Err(UrlRefused::Scheme { scheme: scheme.to_owned() }),
        }
        if !self.allowed.is_match(&host) {
            return Err(UrlRefused::NotAllowed { host });
        }
        match host.parse() {
            Ok(address) => self.check_addresses(&host, &[address]),
            Err(_) => Ok(()),
        }
    }

    /// The addresses of a name, if every one of them may be connected to.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, UrlRefused> {
        let unresolved = |reason| UrlRefused::Unresolved { host: name.to_owned(), reason };
        let found = tokio::time::timeout(LOOKUP_PATIENCE, (self.lookup)(name.to_owned())).await;
        let addresses = found
            .map_err(|_| unresolved(format!("no answer within {} s", LOOKUP_PATIENCE.as_secs())))?
            .map_err(|error| unresolved(error.to_string()))?;
        if addresses.is_empty() {
            return Err(unresolved("there are none".into()));
        }
        self.check_addresses(name, &addresses)?;
        Ok(addresses)
    }

    fn check_addresses(&self, host: &str, addresses: &[IpAddr]) -> Result<(), UrlRefused> {
        match addresses.iter().find(|address| self.block_private && !is_public(**address)) {
            Some(address) => Err(UrlRefused::Private { host: host.to_owned(), address: *address }),
            None => Ok(()),
        }
    }
}

/// Without the brackets around an IPv6 address.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// For the HTTP client, which connects to what this returns: nobody can change his mind between check and connection.
impl Resolve for Policy {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.clone();
        Box::pin(async move {
            let addresses = Policy::resolve(&policy, name.as_str()).await?;
            // The client puts the URL's port in.
            let found: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::policy;
    use serde_json::{Value, json};

    fn verdict(security: Value, url: &str) -> Result<(), String> {
        let policy = policy(json!({ "security": security })).expect("settings");
        policy.check(&Url::parse(url).expect("a URL")).map_err(|refused| refused.to_string())
    }

    #[track_caller]
    fn refused(security: Value, url: &str, why: &str) {
        let reason = verdict(security, url).expect_err("refused");
        assert!(reason.contains(why), "{url}: {reason}");
    }

    #[test]
    fn without_settings_public_https_urls_are_allowed() {
        assert_eq!(verdict(json!({}), "https://api.example.com/hook?x=1"), Ok(()));
        assert_eq!(verdict(json!({ "url_allowlist": [] }), "https://93.184.216.34:8443/"), Ok(()));
        refused(json!({}), "http://api.example.com/", "require_https");
        refused(json!({ "require_https": false }), "ftp://api.example.com/", "`ftp`");
    }

    #[test]
    fn however_a_private_address_is_written_it_is_refused() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://169.254.169.254/latest/meta-data",
            "https://0/",
            "https://user:pass@10.0.0.1/",
            "https://１２７.0.0.1/",
        ] {
            refused(json!({}), url, "private address");
        }
        assert_eq!(verdict(json!({ "block_private_ips": false }), "https://127.0.0.1/"), Ok(()));
    }

    #[test]
    fn an_allow_list_is_of_hosts() {
        let list = || json!({ "url_allowlist": ["*.example.com", "API.test"] });
        assert_eq!(verdict(list(), "https://a.b.example.com/x"), Ok(()));
        assert_eq!(verdict(list(), "https://api.TEST/x"), Ok(()));
        for url in [
            "https://example.com/",
            "https://example.com.evil.net/",
            "https://evil.net/.example.com",
            "https://a.example.com@evil.net/",
        ] {
            refused(list(), url, "url_allowlist");
        }
    }
}
