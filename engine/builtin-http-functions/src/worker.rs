//! The worker: checks registrations, and makes functions of them.

use std::sync::Arc;
use std::time::Duration;

use engine_builtin::{Builtin, BuiltinError, Engine, ErrorBody, Settings};
use reqwest::header::HeaderValue;
use reqwest::redirect;
use reqwest::{Client, Url};
use serde_json::value::RawValue;

use crate::function::HttpFunction;
use crate::invocation::Target;
use crate::policy::{Policy, host_of};
use crate::settings::policy;

/// As in config.yaml.
pub const NAME: &str = "iii-http-functions";

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Executes functions that were registered with an `invocation`. Has no functions of its own.
pub struct HttpFunctions {
    policy: Policy,
    client: Client,
}

/// # Errors
/// Settings that do not fit, or a trust store that cannot be read.
pub async fn create(_engine: Engine, settings: Settings) -> Result<Arc<HttpFunctions>, BuiltinError> {
    Ok(Arc::new(HttpFunctions::new(policy(settings)?)?))
}

impl HttpFunctions {
    fn new(policy: Policy) -> Result<Self, BuiltinError> {
        let client = Client::builder()
            .dns_resolver(policy.clone())
            .redirect(redirect::Policy::none())
            .no_proxy()
            .https_only(policy.require_https)
            .connect_timeout(CONNECT_PATIENCE)
            .build()
            .map_err(|error| BuiltinError::failed("could not prepare for HTTPS", error))?;
        Ok(Self { policy, client })
    }

    /// Whether a function may be registered with this `invocation`: resolves its environment variables, and the name in
    /// its URL.
    ///
    /// # Errors
    /// `deserialization_error`, `url_validation_failed`, `secret_not_found`, `token_not_found` or `api_key_not_found`;
    /// the registration is to be logged and dropped.
    pub async fn check(&self, function_id: &str, invocation: &RawValue) -> Result<HttpFunction, ErrorBody> {
        let target = Target::read(invocation, &self.policy.variables)?;
        self.policy.check(&target.url)?;
        if is_name(&target.url) {
            self.policy.resolve(&host_of(&target.url)).await?;
        }
        let id = HeaderValue::from_str(function_id).map_err(|_| {
            ErrorBody::new("deserialization_error", format!("`{function_id:?}` cannot be sent as a header"))
        })?;
        Ok(HttpFunction { id, target: Arc::new(target), policy: self.policy.clone(), client: self.client.clone() })
    }
}

fn is_name(url: &Url) -> bool {
    host_of(url).parse::<std::net::IpAddr>().is_err()
}

impl Builtin for HttpFunctions {
    fn name(&self) -> &'static str {
        NAME
    }
}

#[cfg(test)]
mod tests;
