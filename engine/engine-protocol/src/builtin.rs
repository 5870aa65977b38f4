//! Workers that are part of an engine, by name: both the engine and those who write its configuration know them.

const BUILTINS: [&str; 15] = [
    "iii-worker-manager",
    "iii-engine-functions",
    "iii-telemetry",
    "iii-observability",
    "iii-state",
    "iii-stream",
    "iii-queue",
    "iii-pubsub",
    "iii-cron",
    "iii-http",
    "iii-http-functions",
    "iii-bridge",
    "iii-exec",
    "iii-sandbox",
    "iii-worker-ops",
];

/// Whether a name in config.yaml stands for a part of the engine. A worker of somebody else may begin with `iii-` too.
#[must_use]
pub fn is_builtin(name: &str) -> bool {
    BUILTINS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_built_in_as_a_whole() {
        assert!(is_builtin("iii-sandbox") && is_builtin("iii-http"));
        assert!(!is_builtin("iii-scorer") && !is_builtin("iii-"));
    }
}
