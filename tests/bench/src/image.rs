//! A registry's image becomes a root file system: ours against `skopeo copy` and `umoci unpack`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use test_rig::{TestRegistry, shared_home};

use crate::machine;
use crate::report::{Report, Samples};

const ROUNDS: usize = 3;

pub(crate) fn measure(report: &mut Report) {
    let registry = TestRegistry::start();
    let layout = shared_home().join("lib/images/python").canonicalize().expect("the image (make images)");
    let reference = registry.push(&layout, "python:bench");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let folder = machine::folder();
        ours.push(runtime.block_on(pull(folder.path(), &reference)));
        theirs.push(unpack(folder.path(), &reference));
    }
    let theirs = Samples::from_durations(theirs);
    let ours = Samples::from_durations(ours);
    report.row("python image, registry → EROFS", ours, Some(("skopeo copy + umoci unpack", &theirs)), "< 1");
}

async fn pull(folder: &Path, reference: &str) -> Duration {
    let start = Instant::now();
    let options = oci::StoreOptions { image_bytes: vmm::ROOT_DISK_BYTES, registry: oci::RegistryOptions::default() };
    let store = oci::Store::open(&folder.join("store"), options).expect("a store");
    let image = oci::ImageRef::parse(reference).expect("a reference");
    store.ensure(&image, oci::Refresh::IfMissing, &|_| ()).await.expect("pulled");
    start.elapsed()
}

fn unpack(folder: &Path, reference: &str) -> Duration {
    let start = Instant::now();
    let layout = folder.join("layout");
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"])
        .arg(format!("docker://{reference}"))
        .arg(format!("oci:{}:bench", layout.display())));
    let image = format!("{}:bench", layout.display());
    run(Command::new("umoci").args(["unpack", "--rootless", "--image", &image]).arg(folder.join("bundle")));
    start.elapsed()
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}
