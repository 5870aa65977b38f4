//! A guest with the image of Python, and what it is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use guest_client::{Guest, Output};
use guest_protocol::{Disk, ExecFile, ExecRequest, Identity};
use oci::{ImageRef, Refresh, RegistryOptions, Store, StoreOptions};

use crate::place::home;

/// The image that sandboxes call `python`, made ready as theirs is.
pub(crate) async fn python() -> PathBuf {
    let layout = home().join("lib/images/python");
    assert!(layout.exists(), "this test needs an image: run `make images` first ({})", layout.display());
    let image = ImageRef::parse(&format!("oci:{}", layout.display())).unwrap();
    let options = StoreOptions { image_bytes: vmm::ROOT_DISK_BYTES, registry: RegistryOptions::from_env() };
    let store = Store::open(&home().join("images"), options).unwrap();
    store.ensure(&image, Refresh::IfMissing, &|_| {}).await.unwrap().path
}

pub(crate) fn identity() -> Identity {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let disk = |device: &str, filesystem: &str| Disk { device: device.into(), filesystem: filesystem.into() };
    Identity {
        entropy: vec![7; 64],
        unix_time_ns: u64::try_from(now.as_nanos()).unwrap(),
        hostname: "saved".into(),
        machine_id: "0".repeat(32),
        network: None,
        root: disk("/dev/vda", "erofs"),
        scratch: Some(disk("/dev/vdb", "ext4")),
        scratch_is_kept: false,
        ca_bundle_pem: None,
        env: BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]),
        workdir: "/".into(),
        user: String::new(),
        memory_limit_bytes: None,
        open_files: 1024,
    }
}

pub(crate) async fn shell(guest: &Guest, script: &str) -> String {
    let file = ExecFile { path: "/run/script".into(), mode: 0o644, content: script.to_owned() };
    let argv = vec!["sh".to_owned(), file.path.clone()];
    let mut run = guest.exec(ExecRequest { argv, files: vec![file], ..ExecRequest::default() }).await.unwrap();
    let mut said = Vec::new();
    loop {
        match run.next().await.unwrap() {
            Output::Stdout(bytes) | Output::Stderr(bytes) => said.extend_from_slice(&bytes),
            Output::Exited { code, .. } => {
                let said = String::from_utf8(said).unwrap();
                assert_eq!(code, 0, "{said}");
                return said.trim().to_owned();
            }
        }
    }
}
