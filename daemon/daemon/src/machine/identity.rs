//! Who a guest becomes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use guest_protocol::{Disk, Identity};
use oci::ImageConfig;
use uuid::Uuid;

use super::{BootError, BootRequest, Network, Slot};

const OPEN_FILES: u64 = 65_536;

/// From the host's random source, for a guest's.
pub(super) fn entropy() -> Result<Vec<u8>, BootError> {
    let mut entropy = vec![0; 64];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut entropy))
        .map_err(|source| BootError::Io { what: "entropy for the guest".into(), source })?;
    Ok(entropy)
}

pub(super) fn machine_id() -> String {
    Uuid::new_v4().simple().to_string()
}

pub(super) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn identity(
    request: &BootRequest,
    config: &ImageConfig,
    slot: Slot,
    ca_bundle: Option<&str>,
) -> Result<Identity, BootError> {
    let mut env: BTreeMap<String, String> = config
        .env
        .iter()
        .filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    env.extend(request.env.clone());
    let networked = request.network != Network::None;
    Ok(Identity {
        entropy: entropy()?,
        unix_time_ns: unix_ns(),
        hostname: request.hostname.clone(),
        machine_id: machine_id(),
        network: networked.then(|| slot.guest()),
        root: Disk { device: "/dev/vda".into(), filesystem: "erofs".into() },
        scratch: Some(Disk { device: "/dev/vdb".into(), filesystem: "ext4".into() }),
        scratch_is_kept: request.scratch.is_kept(),
        ca_bundle_pem: ca_bundle.filter(|_| networked).map(str::to_owned),
        env,
        workdir: config.workdir.clone().unwrap_or_else(|| "/".into()),
        user: config.user.clone().unwrap_or_default(),
        memory_limit_bytes: None,
        open_files: OPEN_FILES,
    })
}
