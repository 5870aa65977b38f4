//! QEMU and libkrun without any of ours around them: what a start cannot be faster than.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

/// A VM's process; killed when dropped.
struct Bare {
    child: Child,
    _ends: Vec<OwnedFd>,
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our end and the child's, which it inherits under its own number.
fn pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    inheritable(theirs.as_raw_fd());
    (ours, theirs.into())
}

fn inheritable(fd: RawFd) {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::BorrowedFd;
    #[expect(unsafe_code, reason = "a descriptor by number, of an owner that outlives this call")]
    // SAFETY: the caller holds the descriptor open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor for the child");
}

fn ask_ping(guest: &mut UnixStream) {
    let body = br#""ping""#;
    let mut frame = u32::try_from(body.len()).expect("short").to_le_bytes().to_vec();
    frame.extend([1, 0, 0, 0, 2, 0, 0, 0]);
    frame.extend(body);
    guest.write_all(&frame).expect("sent");
}

/// Reads one frame to its end.
fn frame(guest: &mut UnixStream) {
    let mut header = [0; 12];
    guest.read_exact(&mut header).expect("a frame");
    let length = u64::from(u32::from_le_bytes([header[0], header[1], header[2], header[3]]));
    std::io::copy(&mut guest.take(length), &mut std::io::sink()).expect("its body");
}

/// A template that was made for the VMs of this run.
pub(crate) struct Template {
    folder: PathBuf,
    shape: Value,
    /// The QEMU that made it.
    program: PathBuf,
}

impl Template {
    pub(crate) fn find(templates: &Path) -> Option<Self> {
        let folder = fs::read_dir(templates).ok()?.flatten().map(|entry| entry.path()).find(|path| path.is_dir())?;
        let about: Value = serde_json::from_slice(&fs::read(folder.join("template.json")).ok()?).ok()?;
        let program = PathBuf::from(about["key"]["qemu"][0].as_str()?);
        Some(Self { folder, shape: about["key"]["shape"].clone(), program })
    }

    /// Starts QEMU on the template's files, and waits for the answer to a ping.
    pub(crate) fn restore(&self, work: &Path) -> Duration {
        let disks = ["root", "scratch"].map(|name| {
            let path = work.join(format!("bare-{name}"));
            File::create(&path).and_then(|file| file.set_len(vmm::ROOT_DISK_BYTES)).expect("a blank disk");
            path
        });
        let state = File::open(self.folder.join("state")).expect("the template's state");
        inheritable(state.as_raw_fd());
        let ((mut guest, guest_end), (_net, net_end), (monitor, monitor_end)) = (pair(), pair(), pair());
        let start = Instant::now();
        let mut command = self.command(&disks, [&guest_end, &net_end, &monitor_end].map(AsRawFd::as_raw_fd));
        let child = command.spawn().expect("QEMU starts");
        let _bare = Bare { child, _ends: vec![guest_end, net_end, monitor_end] };
        let mut lines = BufReader::new(monitor.try_clone().expect("a copy")).lines();
        let capabilities = json!({ "capabilities": [
            { "capability": "x-ignore-shared", "state": true }, { "capability": "events", "state": true },
        ] });
        let script = [
            json!({ "execute": "qmp_capabilities" }),
            json!({ "execute": "migrate-set-capabilities", "arguments": capabilities }),
            json!({ "execute": "migrate-incoming", "arguments": { "uri": format!("fd:{}", state.as_raw_fd()) } }),
        ];
        let text: String = script.iter().map(|line| format!("{line}\n")).collect();
        (&monitor).write_all(text.as_bytes()).expect("commands");
        let completed = lines.any(|line| line.is_ok_and(|line| line.contains(r#""completed""#)));
        assert!(completed, "QEMU did not restore the template");
        (&monitor).write_all(b"{\"execute\":\"cont\"}\n").expect("cont");
        ask_ping(&mut guest);
        frame(&mut guest);
        start.elapsed()
    }

    fn command(&self, disks: &[PathBuf; 2], [guest, net, monitor]: [RawFd; 3]) -> Command {
        let mib = self.shape["memory_mib"].as_u64().expect("a size");
        let memory = json!({"qom-type": "memory-backend-file", "id": "mem", "size": mib << 20,
            "mem-path": self.folder.join("memory"), "share": false});
        let (accel, cpu) = if self.shape["accel"] == "kvm" { ("kvm", "host") } else { ("tcg,thread=multi", "max") };
        let mut command = Command::new(&self.program);
        command.args(["-object", &memory.to_string(), "-accel", accel, "-cpu", cpu]);
        command.args(["-M", "microvm,x-option-roms=off,rtc=on,pit=off,pic=off,acpi=on,memory-backend=mem"]);
        command.args(["-m", &format!("{mib}M"), "-smp", &self.shape["vcpus"].to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "null"]);
        command.args(["-global", "virtio-mmio.force-legacy=off", "-incoming", "defer"]);
        command.args(["-chardev", &format!("socket,id=monitor,fd={monitor}"), "-mon", "chardev=monitor,mode=control"]);
        command.args(["-chardev", &format!("socket,id=guest,fd={guest}")]);
        command.args(["-device", "virtio-serial-device,max_ports=2"]);
        command.args(["-device", "virtserialport,chardev=guest,name=iii.guest"]);
        for (node, path) in ["root", "scratch"].iter().zip(disks) {
            let read_only = *node == "root";
            let disk = json!({"driver": "raw", "node-name": node, "read-only": read_only,
                "file": {"driver": "file", "filename": path, "read-only": read_only}});
            command.args(["-blockdev", &disk.to_string(), "-device", &format!("virtio-blk-device,drive={node}")]);
        }
        command.args(["-netdev", &format!("stream,id=net,server=off,addr.type=fd,addr.str={net}")]);
        command.args(["-device", "virtio-net-device,netdev=net,mac=02:6d:73:00:00:02"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// Starts libkrun on a description that `iii-vm` has run before, without its supervisor, and waits for the Hello.
pub(crate) fn libkrun(spec: &Path) -> Duration {
    let ((mut guest, guest_end), (_net, net_end)) = (pair(), pair());
    let start = Instant::now();
    let mut command = Command::new(crate::machine::program("iii-vm"));
    command.arg("--libkrun").arg(spec).arg(format!("{},{}", guest_end.as_raw_fd(), net_end.as_raw_fd()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("libkrun starts");
    let _bare = Bare { child, _ends: vec![guest_end, net_end] };
    frame(&mut guest);
    start.elapsed()
}
