//! A machine that differs from this one in what its file systems hold: a full disk, another `/dev/kvm`.
//!
//! ```text
//! unshare --mount ── sh -c "mount …; exec $@" ── iii-engine ── all it starts
//! ```

use std::path::Path;
use std::process::Command;

/// What is to stand in for `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmDevice {
    Absent,
    /// It opens, and runs nothing.
    Useless,
}

/// Mounts that only the engine and its children see.
#[derive(Debug, Default)]
pub(crate) struct View {
    script: String,
}

impl View {
    /// An empty file system of `size` (as `mount` writes it: `8m`) over `folder`.
    pub(crate) fn small_disk(&mut self, folder: &Path, size: &str) {
        self.script.push_str(&format!("mount -t tmpfs -o size={size} tmpfs '{}'\n", folder.display()));
    }

    /// Another `/dev`, put together in `folder`.
    pub(crate) fn kvm(&mut self, device: KvmDevice, folder: &Path) {
        let mut script = format!(
            "dev='{}'\nmount -t tmpfs -o mode=755 tmpfs \"$dev\"\n\
             for node in null zero full random urandom tty; do touch \"$dev/$node\"; mount --bind \"/dev/$node\" \"$dev/$node\"; done\n\
             for tree in pts shm; do mkdir \"$dev/$tree\"; mount --rbind \"/dev/$tree\" \"$dev/$tree\"; done\n\
             ln -s pts/ptmx \"$dev/ptmx\"; ln -s /proc/self/fd \"$dev/fd\"\n",
            folder.display()
        );
        if device == KvmDevice::Useless {
            script.push_str("touch \"$dev/kvm\"; mount --bind /dev/null \"$dev/kvm\"\n");
        }
        script.push_str("mount --rbind \"$dev\" /dev\n");
        self.script.push_str(&script);
    }

    /// A command that runs `program` in this view; the process it starts is the program's.
    pub(crate) fn command(&self, program: &Path) -> Command {
        if self.script.is_empty() {
            return Command::new(program);
        }
        let mut command = Command::new("unshare");
        command.args(namespaces()).arg("--").args(["sh", "-c"]);
        command.arg(format!("set -e\n{}exec \"$@\"", self.script)).arg("view").arg(program);
        command
    }

    /// A command that runs `program` in the view that process `pid` has.
    pub(crate) fn command_inside(pid: i32, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={pid}")).args(["--mount", "--root"]);
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program);
        command
    }
}

/// Whoever is not root becomes the root of a user namespace, which may mount.
fn namespaces() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { &["--mount"] } else { &["--mount", "--user", "--map-root-user"] }
}
