//! The log on standard error, which goes into a file: what a guest can provoke must not fill the disk.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;

/// Most that is ever written.
const LIMIT_BYTES: u64 = 1024 * 1024;

static WRITTEN_BYTES: AtomicU64 = AtomicU64::new(0);

pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("III_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_writer(|| Limited).with_ansi(false).with_env_filter(filter).init();
}

struct Limited;

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Beyond the limit bytes are swallowed: a log that fails would be reported again and again.
        if WRITTEN_BYTES.fetch_add(bytes.len() as u64, Ordering::Relaxed) < LIMIT_BYTES {
            io::stderr().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
