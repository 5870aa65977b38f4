//! `iii` without a command: this process becomes the engine.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::arguments::Engine;
use crate::failure::Failure;

/// Returns only if that failed.
pub(crate) fn become_engine(arguments: &Engine) -> Failure {
    let program = bin_dir().join("iii-engine");
    let mut command = Command::new(&program);
    if let Some(config) = &arguments.config {
        command.arg("--config").arg(config);
    }
    if arguments.use_default_config {
        command.arg("--use-default-config");
    }
    if arguments.no_update_check {
        command.arg("--no-update-check");
    }
    let error = command.exec();
    Failure::new(format!("could not start {}: {error}", program.display()))
        .hint("iii-engine belongs beside iii; III_BIN_DIR names another folder")
}

/// Where the other programs of this build are.
pub(crate) fn bin_dir() -> PathBuf {
    std::env::var_os("III_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default()
    })
}
