//! The sandbox daemon's configuration: read once, checked, passed down.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::catalog::PRESETS;

/// The block of `iii-sandbox`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SandboxConfig {
    /// Pull an allowed image on first use.
    pub(crate) auto_install: bool,
    /// Names that may be used; empty means none.
    pub(crate) image_allowlist: Vec<String>,
    pub(crate) default_idle_timeout_secs: u64,
    pub(crate) max_concurrent_sandboxes: u32,
    pub(crate) default_cpus: u32,
    pub(crate) default_memory_mb: u32,
    pub(crate) per_image_caps: BTreeMap<String, Caps>,
    /// Name → reference.
    pub(crate) custom_images: BTreeMap<String, String>,
    pub(crate) max_concurrent_exec_per_sandbox: u32,
    pub(crate) max_exec_timeout_ms: u64,
    /// MiB of guests that are booted before anybody asks, where VMs cannot be restored; 0 is none.
    pub(crate) warm_pool_mb: u32,
    /// `auto`, `libkrun` or `qemu`.
    pub(crate) driver: Option<String>,
    /// `auto`, `kvm` or `tcg`.
    pub(crate) accel: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Caps {
    pub(crate) max_cpus: Option<u32>,
    pub(crate) max_memory_mb: Option<u32>,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            auto_install: true,
            image_allowlist: Vec::new(),
            default_idle_timeout_secs: 300,
            max_concurrent_sandboxes: 32,
            default_cpus: 1,
            default_memory_mb: 512,
            per_image_caps: BTreeMap::new(),
            custom_images: BTreeMap::new(),
            max_concurrent_exec_per_sandbox: 4,
            max_exec_timeout_ms: 300_000,
            warm_pool_mb: 1024,
            driver: None,
            accel: None,
        }
    }
}

impl SandboxConfig {
    /// # Errors
    /// A sentence. The daemon then does not start: it never falls back to something more permissive.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let config: Self = serde_saphyr::from_str(&text).map_err(|error| {
            let nested = if text.contains("sandbox") { " (the block is flat: no `sandbox:` key)" } else { "" };
            format!("{}: {error}{nested}", path.display())
        })?;
        for name in config.custom_images.keys() {
            if name.is_empty() || PRESETS.iter().any(|(preset, _)| preset == name) {
                return Err(format!("custom_images: `{name}` is empty or the name of a preset"));
            }
        }
        Ok(config)
    }
}
