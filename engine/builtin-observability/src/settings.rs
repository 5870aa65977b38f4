//! Settings: as written, from the environment, and checked.
//!
//! What is written wins over the environment, the environment over defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyper::Uri;
use serde::Deserialize;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::alert::{Action, Alert, Operator};
use crate::export::{Protocol, Target};
use crate::sampling::{Ratio, Rule, Rules};
use crate::view::Collapse;

/// Looks up an environment variable; what is not set or no text is `None`.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// As [`Environment`], for as long as the worker lives.
pub(crate) type OwnedEnvironment = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{0}")]
    Shape(#[from] serde_json::Error),
    #[error("`{key}` is {value}; it must be {wanted}")]
    Value { key: String, value: String, wanted: &'static str },
}

fn refused(key: impl Into<String>, value: impl ToString, wanted: &'static str) -> SettingsError {
    SettingsError::Value { key: key.into(), value: value.to_string(), wanted }
}

/// Where a signal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Exporter {
    Memory,
    Otlp,
    Both,
}

impl Exporter {
    pub(crate) fn keeps(self) -> bool {
        self != Self::Otlp
    }

    pub(crate) fn sends(self) -> bool {
        self != Self::Memory
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "memory" => Some(Self::Memory),
            "otlp" => Some(Self::Otlp),
            "both" => Some(Self::Both),
            _ => None,
        }
    }
}

/// How the engine writes its own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Default,
    Json,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    enabled: Option<bool>,
    service_name: Option<String>,
    service_version: Option<String>,
    service_namespace: Option<String>,
    exporter: Option<Exporter>,
    endpoint: Option<String>,
    sampling_ratio: Option<f64>,
    sampling: Option<WrittenSampling>,
    memory_max_spans: Option<u64>,
    metrics_enabled: Option<bool>,
    metrics_exporter: Option<Exporter>,
    metrics_retention_seconds: Option<u64>,
    metrics_max_count: Option<u64>,
    logs_enabled: Option<bool>,
    logs_exporter: Option<Exporter>,
    logs_max_count: Option<u64>,
    logs_retention_seconds: Option<u64>,
    logs_batch_size: Option<u64>,
    logs_flush_interval_ms: Option<u64>,
    logs_sampling_ratio: Option<f64>,
    logs_console_output: Option<bool>,
    alerts: Option<Vec<WrittenAlert>>,
    level: Option<String>,
    format: Option<Format>,
    collapse_spans: Option<Vec<WrittenCollapse>>,
    prometheus: Option<WrittenPrometheus>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSampling {
    default: Option<f64>,
    rules: Option<Vec<WrittenRule>>,
    parent_based: Option<bool>,
    rate_limit: Option<WrittenRateLimit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    operation: Option<String>,
    service: Option<String>,
    rate: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRateLimit {
    max_traces_per_second: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAlert {
    name: String,
    metric: String,
    threshold: f64,
    operator: Option<String>,
    window_seconds: Option<u64>,
    action: Option<WrittenAction>,
    enabled: Option<bool>,
    cooldown_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum WrittenAction {
    Log {},
    Webhook { url: String },
    Function { path: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCollapse {
    name: String,
    service: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPrometheus {
    enabled: Option<bool>,
    host: Option<IpAddr>,
    port: Option<u16>,
}

/// Who we say we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) namespace: Option<String>,
}

/// Checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) enabled: bool,
    pub(crate) service: Service,
    pub(crate) exporter: Exporter,
    /// Of traces and metrics.
    pub(crate) target: Target,
    pub(crate) logs_target: Target,
    pub(crate) sampling: Rules,
    pub(crate) memory_max_spans: usize,
    pub(crate) metrics_enabled: bool,
    pub(crate) metrics_exporter: Exporter,
    pub(crate) metrics_retention_seconds: u64,
    pub(crate) metrics_max_count: usize,
    pub(crate) logs_enabled: bool,
    pub(crate) logs_exporter: Exporter,
    pub(crate) logs_max_count: usize,
    pub(crate) logs_retention_seconds: u64,
    pub(crate) logs_batch_size: usize,
    pub(crate) logs_flush_interval_ms: u64,
    pub(crate) logs_sampling: Ratio,
    pub(crate) logs_console_output: bool,
    pub(crate) alerts: Vec<Alert>,
    pub(crate) level: String,
    pub(crate) format: Format,
    pub(crate) collapse: Vec<Collapse>,
    /// None: no endpoint.
    pub(crate) prometheus: Option<SocketAddr>,
}

impl Settings {
    /// # Errors
    /// The first setting that cannot be used, by name and value. What cannot be used in the environment is passed by
    /// with a warning instead.
    pub(crate) fn parse(value: Value, environment: Environment<'_>) -> Result<Self, SettingsError> {
        let written: Written = if value.is_null() { Written::default() } else { serde_json::from_value(value)? };
        let env = Variables(environment);
        let sampling_ratio = match written.sampling_ratio {
            Some(share) => ratio("sampling_ratio", share)?,
            None => {
                env.read("OTEL_TRACES_SAMPLER_ARG", |text| text.parse().ok().and_then(Ratio::new)).unwrap_or(Ratio::ALL)
            }
        };
        let endpoint = match &written.endpoint {
            Some(endpoint) => {
                checked_endpoint(endpoint).ok_or_else(|| refused("endpoint", endpoint, "an http:// or https:// URL"))?
            }
            None => env
                .read("OTEL_EXPORTER_OTLP_ENDPOINT", checked_endpoint)
                .unwrap_or_else(|| Uri::from_static("http://localhost:4317")),
        };
        let protocol = env.read("OTEL_EXPORTER_OTLP_PROTOCOL", Protocol::parse).unwrap_or(Protocol::Grpc);
        let headers = env.read("OTEL_EXPORTER_OTLP_HEADERS", crate::export::headers).unwrap_or_default();
        let logs_headers = env.read("OTEL_EXPORTER_OTLP_LOGS_HEADERS", crate::export::headers);
        let metrics_exporter = match written.metrics_exporter {
            Some(Exporter::Both) => return Err(refused("metrics_exporter", "both", "`memory` or `otlp`")),
            Some(exporter) => exporter,
            None => env
                .read("OTEL_METRICS_EXPORTER", |text| Exporter::parse(text).filter(|kind| *kind != Exporter::Both))
                .unwrap_or(Exporter::Memory),
        };
        let level = written.level.unwrap_or_else(|| "info".to_owned());
        if EnvFilter::builder().parse(&level).is_err() {
            return Err(refused("level", level, "a filter such as `info` or `info,iii::queue=debug`"));
        }
        let prometheus = written.prometheus.unwrap_or_default();
        let address = SocketAddr::new(
            prometheus.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            prometheus.port.unwrap_or(DEFAULT_PROMETHEUS_PORT),
        );
        let target = Target { endpoint, protocol, headers };
        Ok(Self {
            enabled: written.enabled.or_else(|| env.read("OTEL_ENABLED", truth)).unwrap_or(true),
            service: Service {
                name: written.service_name.or_else(|| env.text("OTEL_SERVICE_NAME")).unwrap_or_else(|| "iii".into()),
                version: written
                    .service_version
                    .or_else(|| env.text("SERVICE_VERSION"))
                    .unwrap_or_else(|| "unknown".into()),
                namespace: written.service_namespace.or_else(|| env.text("SERVICE_NAMESPACE")),
            },
            exporter: written
                .exporter
                .or_else(|| env.read("OTEL_EXPORTER_TYPE", Exporter::parse))
                .unwrap_or(Exporter::Memory),
            logs_target: Target { headers: logs_headers.unwrap_or_else(|| target.headers.clone()), ..target.clone() },
            target,
            sampling: sampling(written.sampling, sampling_ratio)?,
            memory_max_spans: env.count("memory_max_spans", written.memory_max_spans, "OTEL_MEMORY_MAX_SPANS", 1000)?,
            metrics_enabled: written
                .metrics_enabled
                .or_else(|| env.read("OTEL_METRICS_ENABLED", truth))
                .unwrap_or(true),
            metrics_exporter,
            metrics_retention_seconds: env.count(
                "metrics_retention_seconds",
                written.metrics_retention_seconds,
                "OTEL_METRICS_RETENTION_SECONDS",
                3600,
            )? as u64,
            metrics_max_count: env.count(
                "metrics_max_count",
                written.metrics_max_count,
                "OTEL_METRICS_MAX_COUNT",
                10_000,
            )?,
            logs_enabled: written.logs_enabled.unwrap_or(true),
            logs_exporter: written
                .logs_exporter
                .or_else(|| env.read("OTEL_LOGS_EXPORTER", Exporter::parse))
                .unwrap_or(Exporter::Memory),
            logs_max_count: count("logs_max_count", written.logs_max_count.unwrap_or(1000))?,
            logs_retention_seconds: count("logs_retention_seconds", written.logs_retention_seconds.unwrap_or(3600))?
                as u64,
            logs_batch_size: match written.logs_batch_size.unwrap_or(100) {
                size @ 1..=10_000 => size as usize,
                size => return Err(refused("logs_batch_size", size, "1 to 10000")),
            },
            logs_flush_interval_ms: match written.logs_flush_interval_ms.unwrap_or(5000) {
                interval @ 100..=3_600_000 => interval,
                interval => return Err(refused("logs_flush_interval_ms", interval, "100 to 3600000")),
            },
            logs_sampling: ratio("logs_sampling_ratio", written.logs_sampling_ratio.unwrap_or(1.0))?,
            logs_console_output: written.logs_console_output.unwrap_or(true),
            alerts: written.alerts.unwrap_or_default().into_iter().map(alert).collect::<Result<_, _>>()?,
            level,
            format: written.format.unwrap_or(Format::Default),
            collapse: written
                .collapse_spans
                .unwrap_or_default()
                .into_iter()
                .map(|rule| Collapse { name: rule.name, service: rule.service })
                .collect(),
            prometheus: prometheus.enabled.unwrap_or(true).then_some(address),
        })
    }
}

const DEFAULT_PROMETHEUS_PORT: u16 = 9464;

fn ratio(key: &str, share: f64) -> Result<Ratio, SettingsError> {
    Ratio::new(share).ok_or_else(|| refused(key, share, "0 to 1"))
}

fn count(key: &str, number: u64) -> Result<usize, SettingsError> {
    usize::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| refused(key, number, "at least 1"))
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "false" | "0" | "no" | "off" => Some(false),
        "true" | "1" | "yes" | "on" => Some(true),
        _ => None,
    }
}

fn checked_endpoint(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_http && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}

fn sampling(written: Option<WrittenSampling>, default: Ratio) -> Result<Rules, SettingsError> {
    let Some(written) = written else {
        return Ok(Rules { default, rules: Vec::new(), parent_based: false, max_traces_per_second: None });
    };
    let rule = |(at, rule): (usize, WrittenRule)| {
        let rate = ratio(&format!("sampling.rules[{at}].rate"), rule.rate)?;
        Ok(Rule { operation: rule.operation, service: rule.service, rate })
    };
    let max_traces_per_second = match written.rate_limit.map(|limit| limit.max_traces_per_second) {
        Some(rate) if !(rate >= 1.0 && rate.is_finite()) => {
            return Err(refused("sampling.rate_limit.max_traces_per_second", rate, "at least 1"));
        }
        rate => rate,
    };
    Ok(Rules {
        default: written.default.map_or(Ok(default), |share| ratio("sampling.default", share))?,
        rules: written
            .rules
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(rule)
            .collect::<Result<_, SettingsError>>()?,
        parent_based: written.parent_based.unwrap_or(false),
        max_traces_per_second,
    })
}

fn alert(written: WrittenAlert) -> Result<Alert, SettingsError> {
    let operator = match &written.operator {
        None => Operator::GreaterThan,
        Some(text) => Operator::parse(text).ok_or_else(|| {
            refused(format!("alerts[{}].operator", written.name), text, "`greaterthan` or another comparison")
        })?,
    };
    let action = match written.action {
        None | Some(WrittenAction::Log {}) => Action::Log,
        Some(WrittenAction::Function { path }) => Action::Function(path),
        Some(WrittenAction::Webhook { url }) => Action::Webhook(checked_endpoint(&url).ok_or_else(|| {
            refused(format!("alerts[{}].action.url", written.name), url, "an http:// or https:// URL")
        })?),
    };
    Ok(Alert {
        name: written.name,
        metric: written.metric,
        threshold: written.threshold,
        operator,
        window_seconds: written.window_seconds.unwrap_or(60),
        action,
        enabled: written.enabled.unwrap_or(true),
        cooldown_seconds: written.cooldown_seconds.unwrap_or(60),
    })
}

struct Variables<'a>(Environment<'a>);

impl Variables<'_> {
    /// One that is empty is as good as not set.
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|text| !text.is_empty())
    }

    fn read<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(text.trim());
        if value.is_none() {
            // Headers hold secrets: the value stays unsaid.
            tracing::warn!(variable = name, "environment variable is not understood and passed by");
        }
        value
    }

    fn count(&self, key: &str, written: Option<u64>, name: &str, default: u64) -> Result<usize, SettingsError> {
        let from_environment = || self.read(name, |text| text.parse().ok().filter(|number| *number > 0));
        count(key, written.or_else(from_environment).unwrap_or(default))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let look = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::parse(value, &look)
    }

    #[test]
    fn nothing_written_is_the_defaults() {
        let settings = parse(Value::Null, &[]).expect("settings");
        assert_eq!(settings, parse(json!({}), &[]).expect("settings"));
        assert!(settings.enabled && settings.exporter == Exporter::Memory);
        assert_eq!(
            (settings.memory_max_spans, settings.logs_max_count, settings.metrics_max_count),
            (1000, 1000, 10_000)
        );
        assert_eq!(settings.target.endpoint, "http://localhost:4317");
        assert_eq!(settings.prometheus, Some("127.0.0.1:9464".parse().expect("an address")));
        assert_eq!((settings.service.name.as_str(), settings.service.version.as_str()), ("iii", "unknown"));
    }

    #[test]
    fn what_is_written_wins_over_the_environment_and_that_over_defaults() {
        let environment = [
            ("OTEL_ENABLED", "off"),
            ("OTEL_SERVICE_NAME", "shop"),
            ("OTEL_EXPORTER_TYPE", "both"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
            ("OTEL_MEMORY_MAX_SPANS", "7"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "both"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "authorization=logs"),
        ];
        let settings = parse(json!({}), &environment).expect("settings");
        assert!(!settings.enabled && settings.exporter == Exporter::Both && settings.logs_exporter == Exporter::Both);
        assert_eq!((settings.service.name.as_str(), settings.memory_max_spans), ("shop", 7));
        assert_eq!(settings.sampling.default.share(), 0.5);
        assert_eq!(settings.target.endpoint, "https://collector:4318");
        assert_eq!(settings.target.protocol, Protocol::HttpProtobuf);
        assert_eq!(settings.target.headers[0].1, "Bearer x");
        assert_eq!(settings.logs_target.headers[0].1, "logs");
        let written = json!({"enabled": true, "service_name": "w", "exporter": "memory", "sampling_ratio": 1,
            "memory_max_spans": 9, "endpoint": "http://other:1"});
        let settings = parse(written, &environment).expect("settings");
        assert!(settings.enabled && settings.exporter == Exporter::Memory);
        assert_eq!((settings.service.name.as_str(), settings.memory_max_spans), ("w", 9));
        assert_eq!(settings.target.endpoint, "http://other:1");
    }

    #[test]
    fn an_environment_that_makes_no_sense_is_passed_by() {
        let settings = parse(json!({}), &[("OTEL_MEMORY_MAX_SPANS", "many"), ("OTEL_ENABLED", "perhaps")]);
        assert_eq!(settings.expect("settings"), parse(json!({}), &[]).expect("settings"));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_value() {
        for (written, named) in [
            (json!({"sampling_ratio": 1.5}), "`sampling_ratio` is 1.5"),
            (json!({"memory_max_spans": 0}), "`memory_max_spans` is 0"),
            (json!({"logs_batch_size": 10_001}), "`logs_batch_size` is 10001"),
            (json!({"logs_flush_interval_ms": 99}), "`logs_flush_interval_ms` is 99"),
            (json!({"endpoint": "collector:4317"}), "`endpoint` is collector:4317"),
            (json!({"level": "in=fo=x"}), "`level` is in=fo=x"),
            (json!({"metrics_exporter": "both"}), "`metrics_exporter` is both"),
            (json!({"sampling": {"rate_limit": {"max_traces_per_second": 0.5}}}), "max_traces_per_second` is 0.5"),
            (json!({"sampling": {"rules": [{"rate": 2}]}}), "`sampling.rules[0].rate` is 2"),
            (
                json!({"alerts": [{"name": "a", "metric": "m", "threshold": 1, "operator": "=>"}]}),
                "`alerts[a].operator` is =>",
            ),
            (json!({"nonsense": 1}), "unknown field `nonsense`"),
            (json!({"prometheus": {"prot": 1}}), "unknown field `prot`"),
        ] {
            let error = parse(written, &[]).expect_err("an error").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn alerts_have_defaults_and_take_symbols() {
        let written = json!({"alerts": [
            {"name": "a", "metric": "m", "threshold": 1},
            {"name": "b", "metric": "m", "threshold": 1, "operator": "<=", "action": {"type": "webhook", "url": "http://x/"}},
            {"name": "c", "metric": "m", "threshold": 1, "action": {"type": "function", "path": "ops::page"}},
        ]});
        let alerts = parse(written, &[]).expect("settings").alerts;
        assert_eq!(
            (alerts[0].operator, alerts[0].window_seconds, &alerts[0].action),
            (Operator::GreaterThan, 60, &Action::Log)
        );
        assert_eq!(alerts[1].operator, Operator::LessThanOrEqual);
        assert_eq!(alerts[2].action, Action::Function("ops::page".into()));
    }

    #[test]
    fn the_schema_names_every_setting_and_no_other() {
        let schema = crate::schema();
        let properties = schema["properties"].as_object().expect("properties");
        for (name, property) in properties {
            assert!(property["description"].is_string(), "{name} has no description");
            if let Some(default) = property.get("default") {
                let error = parse(json!({name: default}), &[]).err();
                assert!(error.is_none(), "{name}: {error:?}");
            }
        }
        let unknown = parse(json!({"?": 1}), &[]).expect_err("an error").to_string();
        let known = unknown.matches('`').count() / 2 - 1;
        assert_eq!(properties.len(), known, "{unknown}");
    }
}
