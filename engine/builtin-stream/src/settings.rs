//! The settings, checked.

use std::net::IpAddr;
use std::path::PathBuf;

use engine_builtin::{BuiltinError, Settings};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::warn;

pub(crate) const DEFAULT_PORT: u16 = 3112;
pub(crate) const DEFAULT_HOST: &str = "0.0.0.0";
pub(crate) const DEFAULT_FILE_PATH: &str = "./data/stream";
pub(crate) const DEFAULT_CHANNEL_SIZE: usize = 256;
pub(crate) const MAX_CHANNEL_SIZE: usize = 1_048_576;
pub(crate) const DEFAULT_REDIS_URL: &str = "redis://localhost:6379";
pub(crate) const DEFAULT_BRIDGE_URL: &str = "ws://localhost:49134";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) address: Address,
    pub(crate) auth_function: Option<String>,
    pub(crate) adapter: AdapterConfig,
    /// Events that wait for one subscriber.
    pub(crate) channel_size: usize,
}

/// Where subscribers connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Whether only this machine reaches it.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// Where items are kept: two that are equal share one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AdapterConfig {
    Memory,
    /// In a file in this folder.
    File(PathBuf),
    Redis(String),
    Bridge(String),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    port: Option<u16>,
    host: Option<String>,
    auth_function: Option<String>,
    adapter: Option<AdapterBlock>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdapterBlock {
    name: String,
    config: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvBlock {
    store_method: Option<String>,
    file_path: Option<PathBuf>,
    /// Means nothing here: every acknowledged write is on disk.
    #[serde(rename = "save_interval_ms")]
    _save_interval_ms: Option<u64>,
    channel_size: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RedisBlock {
    redis_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BridgeBlock {
    bridge_url: Option<String>,
}

/// # Errors
/// Which key does not fit.
pub(crate) fn parse(settings: Settings) -> Result<Config, BuiltinError> {
    let block: Option<Block> =
        serde_json::from_value(settings).map_err(|error| BuiltinError::Settings(error.to_string()))?;
    let block = block.unwrap_or_default();
    let (adapter, channel_size) = adapter(block.adapter)?;
    Ok(Config {
        address: Address {
            host: block.host.unwrap_or_else(|| DEFAULT_HOST.to_owned()),
            port: block.port.unwrap_or(DEFAULT_PORT),
        },
        auth_function: block.auth_function.filter(|id| !id.is_empty()),
        adapter,
        channel_size,
    })
}

fn adapter(block: Option<AdapterBlock>) -> Result<(AdapterConfig, usize), BuiltinError> {
    let Some(block) = block else { return kv(KvBlock::default()) };
    match block.name.as_str() {
        "kv" => kv(config(block.config)?),
        "redis" => {
            let RedisBlock { redis_url } = config(block.config)?;
            let url = redis_url.unwrap_or_else(|| DEFAULT_REDIS_URL.to_owned());
            Ok((AdapterConfig::Redis(url), DEFAULT_CHANNEL_SIZE))
        }
        "bridge" => {
            let BridgeBlock { bridge_url } = config(block.config)?;
            let url = bridge_url.unwrap_or_else(|| DEFAULT_BRIDGE_URL.to_owned());
            Ok((AdapterConfig::Bridge(url), DEFAULT_CHANNEL_SIZE))
        }
        name => Err(BuiltinError::Settings(format!("adapter.name: `{name}` is none of `kv`, `redis`, `bridge`"))),
    }
}

fn kv(block: KvBlock) -> Result<(AdapterConfig, usize), BuiltinError> {
    let adapter = match block.store_method.as_deref() {
        None | Some("file_based") => {
            AdapterConfig::File(block.file_path.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE_PATH)))
        }
        Some("in_memory") => AdapterConfig::Memory,
        Some(method) => {
            return Err(BuiltinError::Settings(format!(
                "adapter.config.store_method: `{method}` is neither `file_based` nor `in_memory`"
            )));
        }
    };
    Ok((adapter, channel_size(block.channel_size)))
}

/// Numbers out of range fall back to the default.
fn channel_size(given: Option<u64>) -> usize {
    let Some(given) = given else { return DEFAULT_CHANNEL_SIZE };
    match usize::try_from(given) {
        Ok(size) if (1..=MAX_CHANNEL_SIZE).contains(&size) => size,
        _ => {
            warn!(given, "channel_size is out of range: {DEFAULT_CHANNEL_SIZE} is used");
            DEFAULT_CHANNEL_SIZE
        }
    }
}

fn config<T: DeserializeOwned + Default>(config: Option<Value>) -> Result<T, BuiltinError> {
    let Some(config) = config else { return Ok(T::default()) };
    serde_json::from_value(config).map_err(|error| BuiltinError::Settings(format!("adapter.config: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_means_a_durable_store_and_the_usual_address() {
        let config = parse(json!(null)).expect("settings");
        assert_eq!(config, parse(json!({ "adapter": { "name": "kv", "config": {} } })).expect("settings"));
        assert_eq!(config.adapter, AdapterConfig::File(DEFAULT_FILE_PATH.into()));
        assert_eq!((config.address.host.as_str(), config.address.port), ("0.0.0.0", 3112));
        assert_eq!(config.channel_size, 256);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |settings| parse(settings).expect_err("refused").to_string();
        assert!(refused(json!({ "prot": 1 })).contains("prot"));
        assert!(refused(json!({ "port": 65536 })).contains("65536"));
        assert!(refused(json!({ "adapter": { "name": "sql" } })).contains("sql"));
        assert!(refused(json!({ "adapter": { "name": "kv", "config": { "store_method": "x" } } })).contains("`x`"));
        assert!(refused(json!({ "adapter": { "name": "redis", "config": { "url": 1 } } })).contains("url"));
    }

    #[test]
    fn a_channel_size_out_of_range_is_the_default() {
        assert_eq!(channel_size(Some(0)), DEFAULT_CHANNEL_SIZE);
        assert_eq!(channel_size(Some(u64::MAX)), DEFAULT_CHANNEL_SIZE);
        assert_eq!(channel_size(Some(7)), 7);
    }

    #[test]
    fn loopback_is_known_by_name_and_number() {
        let loopback = |host: &str| Address { host: host.into(), port: 1 }.is_loopback();
        assert!(loopback("localhost") && loopback("127.0.0.9") && loopback("::1"));
        assert!(!loopback("0.0.0.0") && !loopback("10.0.0.1") && !loopback("example.org"));
    }
}
