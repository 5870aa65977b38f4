//! Every call into libkrun. It has a C interface, also for Rust: contexts are numbers, errors are negative errnos.
#![expect(unsafe_code, reason = "libkrun's interface is C")]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::KrunError;

/// `krun_set_kernel`: an ELF image.
const KERNEL_ELF: u32 = 1;
/// `krun_set_kernel` on aarch64: a flat image.
const KERNEL_RAW: u32 = 0;
/// `krun_add_disk3`: no container around the disk's bytes.
const DISK_RAW: u32 = 0;
/// `krun_add_disk3`: flushes of the guest are not passed on, or are, down to the host's disk.
const SYNC_NONE: u32 = 0;
const SYNC_FULL: u32 = 2;
/// `krun_set_log_level`: errors only.
const LOG_ERRORS: u32 = 1;

/// A VM that is being described. Consumed by [`Context::enter`].
#[derive(Debug)]
pub(crate) struct Context(u32);

impl Context {
    pub(crate) fn new(vcpus: u8, memory_mib: u32) -> Result<Self, KrunError> {
        check("its log level", krun::krun_set_log_level(LOG_ERRORS))?;
        let context = Self(check("a context", krun::krun_create_ctx())?);
        check("the machine's size", krun::krun_set_vm_config(context.0, vcpus, memory_mib))?;
        // What it would add by itself: an init of its own, a console on our terminal, sockets that reach the host.
        check("to leave out its init", krun::krun_disable_implicit_init(context.0))?;
        check("to leave out its console", krun::krun_disable_implicit_console(context.0))?;
        check("to leave out its sockets", krun::krun_disable_implicit_vsock(context.0))?;
        Ok(context)
    }

    pub(crate) fn kernel(&self, kernel: &Path, initramfs: &Path, command_line: &str) -> Result<(), KrunError> {
        let format = if cfg!(target_arch = "aarch64") { KERNEL_RAW } else { KERNEL_ELF };
        let (kernel, initramfs) = (path(kernel)?, path(initramfs)?);
        let command_line = CString::new(command_line).map_err(|_| refused("the command line", libc::EINVAL))?;
        // SAFETY: three NUL-terminated strings that live until the call returns; it copies what it keeps.
        let result = unsafe {
            krun::krun_set_kernel(self.0, kernel.as_ptr(), format, initramfs.as_ptr(), command_line.as_ptr())
        };
        check("the kernel", result).map(drop)
    }

    /// Disks appear as `/dev/vda`, `/dev/vdb`, … in the order of these calls.
    pub(crate) fn disk(&self, name: &str, file: &Path, read_only: bool, sync: bool) -> Result<(), KrunError> {
        let file = path(file)?;
        let name = CString::new(name).map_err(|_| refused("a disk's name", libc::EINVAL))?;
        let sync = if sync { SYNC_FULL } else { SYNC_NONE };
        // SAFETY: two NUL-terminated strings that live until the call returns; it copies what it keeps.
        let result =
            unsafe { krun::krun_add_disk3(self.0, name.as_ptr(), file.as_ptr(), DISK_RAW, read_only, false, sync) };
        check("a disk", result).map(drop)
    }

    /// Ethernet frames behind a 4-byte big-endian length. No offloads: the relay takes frames as they are on a wire.
    pub(crate) fn network(&self, stream: OwnedFd, mac: [u8; 6]) -> Result<(), KrunError> {
        let (features, flags) = (0, 0);
        // SAFETY: no path is given; `mac` is six bytes, which it copies; the descriptor becomes its own.
        let result = unsafe {
            krun::krun_add_net_unixstream(
                self.0,
                std::ptr::null::<c_char>(),
                stream.into_raw_fd(),
                mac.as_ptr(),
                features,
                flags,
            )
        };
        check("the network device", result).map(drop)
    }

    /// A virtio console with one port, which is a byte stream called `name` in the guest.
    pub(crate) fn port(&self, name: &str, stream: OwnedFd) -> Result<(), KrunError> {
        let name = CString::new(name).map_err(|_| refused("the port's name", libc::EINVAL))?;
        // SAFETY: takes numbers only; marked unsafe like all of its kind.
        let console = check("a console", unsafe { krun::krun_add_virtio_console_multiport(self.0) })?;
        let stream: RawFd = stream.into_raw_fd();
        // SAFETY: a NUL-terminated string that it copies; the descriptor becomes its own, for both directions.
        let result = unsafe { krun::krun_add_console_port_inout(self.0, console, name.as_ptr(), stream, stream) };
        check("the guest's port", result).map(drop)
    }

    /// A serial line whose output goes to `output`; nothing is ever typed on it.
    pub(crate) fn serial_console(&self, output: OwnedFd) -> Result<(), KrunError> {
        // SAFETY: the descriptor becomes its own.
        let result = unsafe { krun::krun_add_serial_console_default(self.0, -1, output.into_raw_fd()) };
        check("the serial console", result).map(drop)
    }

    /// Runs the guest. Comes back only when it could not be started: else the process ends with the guest.
    pub(crate) fn enter(self) -> KrunError {
        refused("to start the VM", -krun::krun_start_enter(self.0))
    }
}

fn path(path: &Path) -> Result<CString, KrunError> {
    // libkrun reads UTF-8.
    let text = path.to_str().and_then(|_| CString::new(path.as_os_str().as_bytes()).ok());
    text.ok_or_else(|| KrunError::Path { path: path.to_owned() })
}

fn check(call: &'static str, result: i32) -> Result<u32, KrunError> {
    u32::try_from(result).map_err(|_| refused(call, result.saturating_neg()))
}

fn refused(call: &'static str, errno: i32) -> KrunError {
    KrunError::Refused { call, source: io::Error::from_raw_os_error(errno) }
}
