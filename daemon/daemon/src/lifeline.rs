//! Notices that the engine is gone, however it went, and ends this process.
//!
//! Three detectors, any one suffices: the lifeline pipe (`III_LIFELINE_FD`) ends; `III_ENGINE_PID` names no process;
//! our parent has changed. The rule is the original's, see `worker::*` in the specification of the 0.19 line.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::kill;
use nix::unistd::{Pid, getppid};
use tokio_util::sync::CancellationToken;

/// How often the two detectors without an event look.
const LOOK: Duration = Duration::from_secs(2);

/// How long an orderly end may take before the process ends anyway.
const GRACE: Duration = Duration::from_secs(8);

/// Starts watching; `gone` is cancelled when the engine is gone, and the process ends soon after in any case.
pub(crate) fn watch(daemon: &'static str, logs: PathBuf, gone: CancellationToken) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<i32>().ok());
    let engine = number("III_ENGINE_PID").filter(|pid| *pid > 1);
    let pipe = number("III_LIFELINE_FD").filter(|fd| *fd > 2).and_then(crate::sys::adopt_pipe);
    let parent = getppid();
    if engine.is_none() && pipe.is_none() {
        // Started by hand: nobody to die with.
        return;
    }
    thread::spawn(move || {
        while !over(engine, pipe.as_ref(), parent) {}
        // Whoever read our output is gone: before anything is said, it goes elsewhere.
        crate::sys::redirect_output(&logs.join(format!("{daemon}.log")));
        breadcrumb(&logs, daemon, engine);
        gone.cancel();
        thread::sleep(GRACE);
        std::process::exit(1);
    });
}

fn over(engine: Option<i32>, pipe: Option<&OwnedFd>, parent: Pid) -> bool {
    let patience = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
    match pipe {
        Some(pipe) => {
            let mut descriptors = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            // Nobody writes into it: readable means that its other end is closed.
            if nix::poll::poll(&mut descriptors, patience).is_ok_and(|ready| ready > 0) {
                return true;
            }
        }
        None => thread::sleep(LOOK),
    }
    let dead = |pid: Pid| kill(pid, None) == Err(Errno::ESRCH);
    engine.is_some_and(|pid| dead(Pid::from_raw(pid))) || (parent.as_raw() > 1 && getppid() != parent && dead(parent))
}

fn breadcrumb(logs: &std::path::Path, daemon: &str, engine: Option<i32>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let engine = engine.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(logs.join(format!("{daemon}.log"))) {
        let _ = writeln!(file, "ts={now} daemon={daemon} self-exit reason=engine-gone engine_pid={engine}");
    }
}
