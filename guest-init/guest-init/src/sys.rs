//! System calls without a safe wrapper: ioctls of the random device, of block devices and of network interfaces.
#![expect(unsafe_code, reason = "ioctls and finit_module have no safe wrapper")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

/// `linux/fs.h`
const BLKFLSBUF: libc::c_ulong = 0x1261;
/// `linux/random.h`
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Seed bytes that one call credits; more arrive in several.
const SEED_BYTES: usize = 64;

/// `struct rand_pool_info` with a fixed buffer.
#[repr(C)]
struct RandomPool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; SEED_BYTES],
}

/// The error that a system call has left, if it failed.
pub(crate) fn check(result: impl Into<libc::c_long>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `/dev/null`, open since the first call: a template has it open, and its clones need not.
pub(crate) fn null() -> io::Result<&'static File> {
    static NULL: OnceLock<File> = OnceLock::new();
    match NULL.get() {
        Some(file) => Ok(file),
        None => File::open("/dev/null").map(|file| NULL.get_or_init(|| file)),
    }
}

/// The kernel's random source, likewise.
pub(crate) fn random() -> io::Result<&'static File> {
    static RANDOM: OnceLock<File> = OnceLock::new();
    match RANDOM.get() {
        Some(file) => Ok(file),
        None => File::options().read(true).write(true).open("/dev/urandom").map(|file| RANDOM.get_or_init(|| file)),
    }
}

/// Credits `seed` to the kernel's random source and makes it start over from it.
pub(crate) fn seed_random(seed: &[u8]) -> io::Result<()> {
    let device = random()?;
    for part in seed.chunks(SEED_BYTES) {
        let bytes = i32::try_from(part.len()).unwrap_or(0);
        let mut pool = RandomPool { entropy_bits: bytes * 8, bytes, buffer: [0; SEED_BYTES] };
        pool.buffer[..part.len()].copy_from_slice(part);
        // SAFETY: the kernel reads a `rand_pool_info` whose `bytes` is at most the length of `buffer`.
        check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) })?;
    }
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) })
}

/// Forgets what the kernel has cached of a block device: a template's disks were others.
pub(crate) fn forget_cached_blocks(device: &str) -> io::Result<()> {
    let file = File::open(device)?;
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKFLSBUF as _) })
}

/// Loads a kernel module; one that is already there is fine.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    let none = CString::default();
    // SAFETY: `file` is open and `none` is a terminated string; the kernel copies both.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EEXIST) { Ok(()) } else { Err(error) }
}

/// An interface, addressed by the ioctls of `netdevice(7)`.
pub(crate) struct Interface {
    socket: std::net::UdpSocket,
    request: libc::ifreq,
}

impl Interface {
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        // Any socket of the family will do; it carries nothing.
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // SAFETY: `ifreq` is plain data for which zero bytes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self { socket, request })
    }

    fn call(&mut self, number: libc::c_ulong) -> io::Result<()> {
        // SAFETY: `request` is an `ifreq` that lives across the call; every request used here takes one.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), number as _, &raw mut self.request) })
    }

    pub(crate) fn set_mac(&mut self, mac: [u8; 6]) -> io::Result<()> {
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        self.request.ifr_ifru.ifru_hwaddr = address;
        self.call(libc::SIOCSIFHWADDR)
    }

    pub(crate) fn set_mtu(&mut self, mtu: u16) -> io::Result<()> {
        self.request.ifr_ifru.ifru_mtu = i32::from(mtu);
        self.call(libc::SIOCSIFMTU)
    }

    pub(crate) fn set_address(&mut self, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        self.request.ifr_ifru.ifru_addr = socket_address(address);
        self.call(libc::SIOCSIFADDR)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
        self.request.ifr_ifru.ifru_netmask = socket_address(Ipv4Addr::from(mask));
        self.call(libc::SIOCSIFNETMASK)
    }

    /// Takes away the address that the interface has, if it has one; its other labels keep theirs.
    pub(crate) fn clear_address(&mut self) -> io::Result<()> {
        self.request.ifr_ifru.ifru_addr = socket_address(Ipv4Addr::UNSPECIFIED);
        self.call(libc::SIOCSIFADDR)
    }

    pub(crate) fn down(&mut self) -> io::Result<()> {
        self.request.ifr_ifru.ifru_flags = 0;
        self.call(libc::SIOCSIFFLAGS)
    }

    pub(crate) fn up(&mut self) -> io::Result<()> {
        self.request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.call(libc::SIOCSIFFLAGS)
    }

    pub(crate) fn default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: `rtentry` is plain data for which zero bytes are a value.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: `route` is an `rtentry` without a device name; the kernel copies it.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) })
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut plain = libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: [0; 14] };
    // Bytes 0 and 1 are the port.
    for (to, from) in plain.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    plain
}

/// Tells a terminal, and whoever runs in it, its new size.
pub(crate) fn set_window(terminal: &std::os::fd::OwnedFd, size: &nix::pty::Winsize) {
    // SAFETY: `size` is a `winsize` that lives across the call. Fails only where the terminal is gone.
    let _ = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, std::ptr::from_ref(size)) };
}

/// The first page of a file, mapped: what is written here is in the file, without a system call.
pub(crate) struct Page(NonNull<u8>);

// SAFETY: the mapping is this value's alone, and writing needs it exclusively.
unsafe impl Send for Page {}

impl Page {
    /// Of every machine we run on, at least.
    pub(crate) const BYTES: usize = 4096;

    /// Maps it for as long as this process lives.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; `file` is open.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), Self::BYTES, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// What is longer than a page is cut. The file has to have something in it: to write to a page behind its end is the
    /// end of this process.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let length = bytes.len().min(Self::BYTES);
        // SAFETY: the mapping has `BYTES` bytes and is never unmapped; `bytes` is not in it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_ptr(), length) };
    }
}
