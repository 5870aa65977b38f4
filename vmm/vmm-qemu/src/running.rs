//! A guest whose processors run: commands are obeyed, full disks waited for, the end is observed.

use std::io;
use std::process::ExitStatus;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;
use vmm::{VmCommand, VmEvent, VmExit};
use vmm_host::{ConsoleEnd, Process, describe};

use crate::full_disk::FullDisk;
use crate::qmp::{Heard, Monitor};
use crate::take::{self, Source, TakeError};

/// Pausing waits for what the disks are at.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

/// A guest whose processors run.
#[derive(Debug)]
pub struct Running {
    pub(crate) process: Process,
    pub(crate) monitor: Monitor,
    pub(crate) source: Source,
}

impl Running {
    /// Waits for the end of the guest, answering `commands` and reporting what a person should know meanwhile.
    #[must_use]
    pub fn wait(mut self, commands: Receiver<VmCommand>, report: &mut dyn FnMut(VmEvent)) -> VmExit {
        let (mut was_reset, mut was_shut_down, mut patience) = (false, false, None);
        let mut disk = FullDisk::default();
        if let Err(error) = self.monitor.take_commands(commands) {
            report(VmEvent::Warning { message: format!("the VM takes no commands: {error}") });
        }
        loop {
            let heard = self.monitor.hear(patience);
            match &heard {
                Heard::Ended => break,
                Heard::Command(command) => report(self.obey(command, &mut disk)),
                Heard::Event { name, data } if name == "SHUTDOWN" => {
                    was_shut_down = true;
                    was_reset = data["reason"] == "guest-reset" || data["reason"] == "guest-panic";
                }
                Heard::Event { .. } | Heard::Silence => {}
            }
            let reaction = disk.heed(&heard, Instant::now(), |message| report(VmEvent::Warning { message }));
            if reaction.done || reaction.command.is_some_and(|cont| self.monitor.send(&[(cont, Value::Null)]).is_err())
            {
                break;
            }
            patience = reaction.listen_for;
        }
        if disk.gave_up {
            self.process.kill();
        }
        let status = self.process.wait();
        let console_tail = self.process.console_tail();
        let failed = |reason: String| VmExit::Failed { reason, hint: None, console_tail: console_tail.clone() };
        match status {
            _ if disk.gave_up => VmExit::Failed {
                reason: "the disk that holds its files is full on the host".to_owned(),
                hint: Some("free some space on the disk of III_HOME".to_owned()),
                console_tail: String::new(),
            },
            // A panicking kernel resets the machine, and so does an orderly reboot. Of a fork whose nursery has ended, nobody
            // tells the status.
            _ if ended_itself(&status, was_shut_down) => match ConsoleEnd::of(&console_tail) {
                ConsoleEnd::KernelPanic if was_reset => failed("the guest's kernel panicked".to_owned()),
                _ => VmExit::Stopped,
            },
            Ok(status) => failed(format!("QEMU ended with {}: {}", describe(status), self.process.last_message())),
            Err(error) => failed(format!("the end of QEMU could not be observed: {error}")),
        }
    }

    fn obey(&mut self, command: &VmCommand, disk: &mut FullDisk) -> VmEvent {
        let mut run = |word| self.monitor.run(word, Value::Null, Instant::now() + PAUSE_LIMIT);
        let done = match command {
            VmCommand::Pause => run("stop").map(|()| disk.pause()).map(|()| VmEvent::Paused).map_err(TakeError::from),
            VmCommand::Resume => {
                run("cont").map(|()| disk.resume()).map(|()| VmEvent::Resumed).map_err(TakeError::from)
            }
            VmCommand::Snapshot(_) if disk.is_full() => Err(TakeError::HostDiskFull),
            VmCommand::Snapshot(request) => {
                let pid = Pid::from_raw(self.process.pid().cast_signed());
                let paused = disk.is_paused();
                let taken = take::take(pid, &mut self.monitor, &mut self.source, request, paused);
                if taken.is_ok() && request.leave_paused {
                    disk.pause();
                }
                taken.map(VmEvent::Snapshotted)
            }
        };
        done.unwrap_or_else(|error| VmEvent::CommandFailed(error.answer(command.name())))
    }
}

/// Whether QEMU ended because its machine did.
fn ended_itself(status: &io::Result<ExitStatus>, was_shut_down: bool) -> bool {
    status.as_ref().map_or(was_shut_down, ExitStatus::success)
}
