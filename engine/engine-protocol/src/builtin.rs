//! Workers that are part of an engine, by name: both the engine and those who write its configuration know them.

/// What a name in config.yaml stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuiltIn {
    /// Part of the engine, in every configuration or where its entry asks for it.
    Present,
    /// Part of the original, and not of this version.
    Absent,
}

const PRESENT: [&str; 6] = [
    "iii-worker-manager",
    "iii-sandbox",
    "iii-worker-ops",
    "iii-engine-functions",
    "iii-telemetry",
    "iii-observability",
];

const ABSENT: [&str; 9] = [
    "iii-state",
    "iii-stream",
    "iii-queue",
    "iii-pubsub",
    "iii-cron",
    "iii-http",
    "iii-http-functions",
    "iii-bridge",
    "iii-exec",
];

/// `None` for a worker of somebody else, whose name may begin with `iii-` as well.
#[must_use]
pub fn builtin(name: &str) -> Option<BuiltIn> {
    match name {
        name if PRESENT.contains(&name) => Some(BuiltIn::Present),
        name if ABSENT.contains(&name) => Some(BuiltIn::Absent),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_built_in_as_a_whole() {
        assert_eq!(builtin("iii-sandbox"), Some(BuiltIn::Present));
        assert_eq!(builtin("iii-http"), Some(BuiltIn::Absent));
        assert_eq!(builtin("iii-scorer"), None);
    }
}
