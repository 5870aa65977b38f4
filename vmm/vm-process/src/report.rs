//! Events on standard output, one per line.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use vmm::{VmEvent, VmExit};

static ENDED: Mutex<bool> = Mutex::new(false);

/// Prints one event, unless the last one was printed already. Nobody may be listening any more: that is no error.
pub(crate) fn report(event: &VmEvent) {
    let mut ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
    if *ended {
        return;
    }
    *ended = matches!(event, VmEvent::Exited(_));
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

/// Prints the last event; the process's exit status says the same in short.
pub(crate) fn end(exit: VmExit) -> ! {
    let status = i32::from(exit != VmExit::Stopped);
    report(&VmEvent::Exited(exit));
    std::process::exit(status)
}
