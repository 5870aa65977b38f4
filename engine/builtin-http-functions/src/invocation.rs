//! The `invocation` of a registration, as sent and as checked.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::time::Duration;

use engine_builtin::ErrorBody;
use globset::GlobSet;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::Sha256;

use crate::function::MAX_TIMEOUT;
use crate::policy::UrlRefused;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Headers that say how a message is framed, or whom it is for: with another value than ours, the receiver would see
/// another message, or another host, than was checked.
const OURS: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[derive(Deserialize)]
struct Wire {
    url: String,
    method: Option<WireMethod>,
    timeout_ms: Option<u64>,
    headers: Option<BTreeMap<String, String>>,
    auth: Option<WireAuth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum WireMethod {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// Values are names of environment variables.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireAuth {
    Bearer { token_key: String },
    ApiKey { header: String, value_key: String },
    Hmac { secret_key: String },
}

/// What is asked for, with its secrets, before the policy has seen the URL.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) method: Method,
    pub(crate) timeout: Duration,
    /// The configured ones, and after them what is to prove who we are.
    pub(crate) headers: HeaderMap,
    pub(crate) signature: Option<Signature>,
}

/// Signs bodies; shows nothing of its secret.
#[derive(Clone)]
pub(crate) struct Signature(Hmac<Sha256>);

impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Signature(****)")
    }
}

impl Signature {
    pub(crate) fn new(secret: &str) -> Option<Self> {
        // HMAC takes keys of any length.
        Hmac::new_from_slice(secret.as_bytes()).ok().map(Self)
    }

    /// In hex.
    pub(crate) fn of(&self, text: &str) -> String {
        let digest = self.0.clone().chain_update(text.as_bytes()).finalize().into_bytes();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Target {
    /// `variables` are those of the environment that may be named.
    pub(crate) fn read(invocation: &RawValue, variables: &GlobSet) -> Result<Self, ErrorBody> {
        let wire: Wire = serde_json::from_str(invocation.get()).map_err(|error| malformed(&error.to_string()))?;
        let url = Url::parse(&wire.url)
            .map_err(|error| UrlRefused::Malformed { url: wire.url.clone(), reason: error.to_string() })?;
        let mut headers = HeaderMap::new();
        for (name, value) in wire.headers.unwrap_or_default() {
            let name = header_name(&name)?;
            let value = HeaderValue::from_str(&value).map_err(|_| {
                malformed(&format!("the value of header `{name}` has characters that headers cannot have"))
            })?;
            headers.insert(name, value);
        }
        let variable = |name: &str, code| variable(name, code, variables);
        let mut signature = None;
        match wire.auth {
            None => {}
            Some(WireAuth::Bearer { token_key }) => {
                let token = format!("Bearer {}", variable(&token_key, "token_not_found")?);
                headers.insert(AUTHORIZATION, secret(&token, &token_key, "token_not_found")?);
            }
            Some(WireAuth::ApiKey { header, value_key }) => {
                let key = variable(&value_key, "api_key_not_found")?;
                headers.insert(header_name(&header)?, secret(&key, &value_key, "api_key_not_found")?);
            }
            Some(WireAuth::Hmac { secret_key }) => {
                signature = Signature::new(&variable(&secret_key, "secret_not_found")?);
            }
        }
        Ok(Self {
            url,
            method: match wire.method.unwrap_or(WireMethod::Post) {
                WireMethod::Get => Method::GET,
                WireMethod::Post => Method::POST,
                WireMethod::Put => Method::PUT,
                WireMethod::Patch => Method::PATCH,
                WireMethod::Delete => Method::DELETE,
            },
            timeout: wire.timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis).min(MAX_TIMEOUT),
            headers,
            signature,
        })
    }
}

fn malformed(why: &str) -> ErrorBody {
    ErrorBody::new("deserialization_error", format!("invocation: {why}"))
}

fn header_name(name: &str) -> Result<HeaderName, ErrorBody> {
    let name =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| malformed(&format!("`{name}` is no name of a header")))?;
    if OURS.contains(&name.as_str()) {
        return Err(malformed(&format!("header `{name}` is set by the engine")));
    }
    Ok(name)
}

fn variable(name: &str, code: &str, allowed: &GlobSet) -> Result<String, ErrorBody> {
    // Whether it is set is nobody's business who may not read it.
    if !allowed.is_match(name) {
        let message = format!("environment variable `{name}` is not on `security.env_allowlist`");
        return Err(ErrorBody::new(code, message));
    }
    env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or_else(|| ErrorBody::new(code, format!("environment variable `{name}` is not set")))
}

fn secret(value: &str, name: &str, code: &str) -> Result<HeaderValue, ErrorBody> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        ErrorBody::new(code, format!("environment variable `{name}` has characters that headers cannot have"))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use globset::Glob;
    use serde_json::json;

    use super::*;

    /// Set by cargo for every test.
    const VARIABLE: &str = "CARGO_PKG_NAME";

    fn read(text: &str) -> Result<Target, ErrorBody> {
        read_with(text, "*")
    }

    fn read_with(text: &str, allowed: &str) -> Result<Target, ErrorBody> {
        let variables = GlobSet::builder().add(Glob::new(allowed).expect("a pattern")).build().expect("patterns");
        Target::read(&RawValue::from_string(text.to_owned()).expect("JSON"), &variables)
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let target = read(r#"{"url":"https://a.test/x","auth":null,"timeout_ms":null,"extra":1}"#).expect("a target");
        assert_eq!((target.method, target.timeout), (Method::POST, DEFAULT_TIMEOUT));
        assert!(target.headers.is_empty() && target.signature.is_none());
        let target = read(r#"{"url":"https://a.test/","method":"PATCH","timeout_ms":9999999}"#).expect("a target");
        assert_eq!((target.method, target.timeout), (Method::PATCH, MAX_TIMEOUT));
    }

    #[test]
    fn secrets_come_from_the_environment_and_are_not_shown() {
        let bearer =
            read(&format!(r#"{{"url":"https://a.test/","auth":{{"type":"bearer","token_key":"{VARIABLE}"}}}}"#));
        let bearer = bearer.expect("a target");
        assert_eq!(bearer.headers["authorization"], "Bearer builtin-http-functions");
        assert!(!format!("{bearer:?}").contains("builtin-http"), "{bearer:?}");
        for (auth, code) in [
            (r#"{"type":"bearer","token_key":"III_NO_SUCH"}"#, "token_not_found"),
            (r#"{"type":"api_key","header":"X-Key","value_key":"III_NO_SUCH"}"#, "api_key_not_found"),
            (r#"{"type":"hmac","secret_key":"III_NO_SUCH"}"#, "secret_not_found"),
        ] {
            let error = read(&format!(r#"{{"url":"https://a.test/","auth":{auth}}}"#)).expect_err("refused");
            assert_eq!(error.code, code);
            assert!(error.message.contains("III_NO_SUCH"), "{}", error.message);
        }
    }

    #[test]
    fn a_variable_that_is_not_allowed_is_refused_whether_it_is_set_or_not() {
        for variable in [VARIABLE, "III_NO_SUCH"] {
            for (auth, code) in [
                (json!({"type": "bearer", "token_key": variable}), "token_not_found"),
                (json!({"type": "api_key", "header": "X-Key", "value_key": variable}), "api_key_not_found"),
                (json!({"type": "hmac", "secret_key": variable}), "secret_not_found"),
            ] {
                let invocation = json!({"url": "https://a.test/", "auth": auth}).to_string();
                for allowed in ["SHOP_*", "cargo_pkg_name", "CARGO_PKG"] {
                    let error = read_with(&invocation, allowed).expect_err("refused");
                    let message = format!("environment variable `{variable}` is not on `security.env_allowlist`");
                    assert_eq!((error.code.as_str(), error.message), (code, message));
                }
                assert_eq!(read_with(&invocation, "CARGO_*").is_ok(), variable == VARIABLE);
            }
        }
    }

    /// RFC 4231, test case 2.
    #[test]
    fn a_signature_is_hmac_sha256() {
        let signature = Signature::new("Jefe").expect("a key");
        assert_eq!(
            signature.of("what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        for (invocation, why) in [
            ("5", "invalid type"),
            ("{}", "missing field `url`"),
            (r#"{"url":"https://a.test/","method":"TRACE"}"#, "TRACE"),
            (r#"{"url":"https://a.test/","auth":{"type":"basic"}}"#, "basic"),
            (r#"{"url":"https://a.test/","headers":{"a b":"c"}}"#, "`a b`"),
            (r#"{"url":"https://a.test/","headers":{"a":"b\r\nc: d"}}"#, "`a`"),
            (r#"{"url":"https://a.test/","headers":{"Content-Length":"0"}}"#, "content-length"),
            (r#"{"url":"https://a.test/","headers":{"Host":"b.test"}}"#, "host"),
        ] {
            let error = read(invocation).expect_err("refused");
            assert_eq!(error.code, "deserialization_error");
            assert!(error.message.contains(why), "{}", error.message);
        }
        assert_eq!(read(r#"{"url":"not a url"}"#).expect_err("refused").code, "url_validation_failed");
    }
}
