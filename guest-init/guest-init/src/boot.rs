//! From the kernel's first process to a guest that waits for orders.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use guest_protocol::PORT_NAME;
use nix::mount::{MsFlags, mount};

use crate::serve::{Platform, Services, serve};
use crate::{names, network, renew, root, sys};

/// Files of `/proc/sys/vm`: fewer of the kernel's own wake-ups (its defaults are 1 s, 500 and 3000 hundredths, and twice a
/// second a look at whether memory should be compacted before anybody needs it). Written data is on its way to the disk
/// after at most 15 + 15 s; by default, after 30 + 5 s.
const VM_SYSCTLS: [(&str, &str); 4] = [
    ("stat_interval", "60"),
    ("dirty_writeback_centisecs", "1500"),
    ("dirty_expire_centisecs", "1500"),
    ("compaction_proactiveness", "0"),
];

/// Runs as PID 1 and never returns: what PID 1 returns from is a kernel panic.
pub fn run() -> ! {
    for (source, target, kind) in [("proc", "/proc", "proc"), ("sysfs", "/sys", "sysfs"), ("dev", "/dev", "devtmpfs")] {
        let mounted = fs::create_dir_all(target)
            .and_then(|()| mount(Some(source), target, Some(kind), MsFlags::empty(), None::<&str>).map_err(Into::into));
        report(&format!("mount {target}"), mounted);
    }
    std::panic::set_hook(Box::new(|panic| console(&format!("a request panicked: {panic}"))));
    load_modules();
    report("loopback", network::loopback_up());
    report("leave out IPv6", network::without_ipv6());
    root::prepare(report);
    report("prepare the names", names::prepare());
    report("prepare for a fork", renew::prepare());
    for (name, value) in VM_SYSCTLS {
        report(name, fs::write(Path::new("/proc/sys/vm").join(name), value));
    }
    loop {
        match find_port() {
            Ok(port) => serve(port, Services::new(Platform::Guest)),
            Err(error) => console(&format!("no port `{PORT_NAME}`: {error}")),
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// One line for whoever reads the console; the only diagnosis before a host has connected.
pub(crate) fn console(line: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = writeln!(console, "iii-init: {line}");
    }
}

fn report(step: &str, result: io::Result<()>) {
    if let Err(error) = result {
        console(&format!("{step} failed: {error}"));
    }
}

/// Loads what `/modules/order` lists, one file name per line; a kernel with everything built in has no list.
fn load_modules() {
    let Ok(order) = fs::read_to_string("/modules/order") else { return };
    for name in order.lines() {
        let path = Path::new("/modules").join(name);
        report(&format!("module {name}"), File::open(&path).and_then(|file| sys::load_module(&file)));
    }
}

/// Finds the port by its name; drivers may still be coming up.
fn find_port() -> io::Result<File> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..1000 {
        match port_device() {
            Ok(path) => return OpenOptions::new().read(true).write(true).open(path),
            Err(error) => last = error,
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(last)
}

fn port_device() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
