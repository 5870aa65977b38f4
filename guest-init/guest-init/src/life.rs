//! One process, from its start to its end: its pipes or terminal, its input and output, its orders.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_protocol::{Control, Kind, Reply, TerminalSize};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};

use crate::serve::Services;
use crate::spawn::Launch;
use crate::sys;
use crate::wire::{Stream, wait};

/// Once the process has ended, its pipes are read until they have been silent for this long: a background child
/// may hold them open for ever.
const DRAIN: Duration = Duration::from_millis(100);

/// A background child that goes on writing is listened to for this long.
const LONG_DRAIN: Duration = Duration::from_secs(1);

/// What to start.
pub(crate) struct Program<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) workdir: Option<&'a str>,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) stdin: bool,
}

/// A process that runs.
pub(crate) struct Life {
    group: Pid,
    stdin: Option<File>,
    pending_input: Vec<u8>,
    outputs: Vec<(Kind, File)>,
    terminal: Option<OwnedFd>,
    /// Its exit status, once it has ended.
    exit: Option<i32>,
}

/// What a look at the outputs brought.
#[derive(PartialEq, Eq)]
enum Pumped {
    Something,
    Nothing,
    /// The host has no room: nobody looked.
    NoRoom,
}

/// Why [`Life::run`] returned.
pub(crate) enum Ended {
    Exited { code: i32, timed_out: bool },
    Restart,
    Stop,
}

/// How orders are taken.
pub(crate) struct Rules {
    pub(crate) deadline: Option<Instant>,
    /// `Restart` and `Stop` end the run; else `Stop` kills and the exit is reported.
    pub(crate) supervised: bool,
}

impl Life {
    /// # Errors
    /// What the kernel said; ENOENT and EACCES are about the program or the working directory.
    pub(crate) fn start(services: &Services, stream: &Arc<Stream>, program: &Program<'_>) -> io::Result<(Self, u32)> {
        let base = services.base();
        let mut env: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, value) in base.env.iter().chain(program.env) {
            env.insert(name, value);
        }
        let mut life = Self {
            group: Pid::from_raw(0),
            stdin: None,
            pending_input: Vec::new(),
            outputs: Vec::new(),
            terminal: None,
            exit: None,
        };
        let stdio = match program.terminal {
            Some(size) => life.with_terminal(size)?,
            None => life.with_pipes(program.stdin)?,
        };
        let launch = Launch {
            argv: program.argv,
            env,
            workdir: program.workdir.unwrap_or(&base.workdir),
            stdio,
            terminal: program.terminal.is_some(),
            account: &base.account,
            open_files: base.open_files,
        };
        let pid = services.reaper.watch(stream, || launch.start())?;
        life.group = pid;
        // Our copies of the program's ends go with `launch`, or the pipes would never end.
        Ok((life, pid.as_raw().unsigned_abs()))
    }

    /// What the program is given; the other ends stay here.
    fn with_pipes(&mut self, stdin: bool) -> io::Result<[OwnedFd; 3]> {
        let input = match stdin {
            true => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                fcntl(&write, FcntlArg::F_SETFL(OFlag::O_WRONLY | OFlag::O_NONBLOCK))?;
                self.stdin = Some(File::from(write));
                read
            }
            false => sys::null()?.try_clone()?.into(),
        };
        let mut output = |kind| {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            self.outputs.push((kind, File::from(read)));
            Ok::<_, io::Error>(write)
        };
        Ok([input, output(Kind::Output)?, output(Kind::ErrorOutput)?])
    }

    /// As above; all three are the terminal.
    fn with_terminal(&mut self, size: TerminalSize) -> io::Result<[OwnedFd; 3]> {
        // Closed on exec from the first moment: another program that starts just now must not have it. Never waited for: a
        // program that reads nothing must not keep us from its output and its orders.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptsname_r(&master)?)?;
        let master = OwnedFd::from(master);
        sys::set_window(&master, &window(size));
        let slaves = [slave.try_clone()?.into(), slave.try_clone()?.into(), slave.into()];
        self.stdin = Some(File::from(master.try_clone()?));
        self.outputs.push((Kind::Output, File::from(master.try_clone()?)));
        self.terminal = Some(master);
        Ok(slaves)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = killpg(self.group, signal);
    }

    /// Carries input and output until the process has ended and its output is through, or an order ends the run.
    pub(crate) fn run(&mut self, stream: &Stream, rules: &Rules) -> Ended {
        let mut timed_out = false;
        let mut silent_since = Instant::now();
        let mut drained_by = Instant::now();
        loop {
            stream.quiet();
            if self.exit.is_none() {
                self.exit = stream.next_exit();
                silent_since = Instant::now();
                drained_by = silent_since + LONG_DRAIN;
            }
            while let Some(order) = stream.next_order() {
                match order {
                    Control::Restart if rules.supervised => return Ended::Restart,
                    Control::Stop | Control::Cancel if rules.supervised => return Ended::Stop,
                    other => self.obey(&other),
                }
            }
            if self.exit.is_none() && !timed_out && rules.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                timed_out = true;
                self.signal(Signal::SIGKILL);
            }
            if let Some(code) = self.exit
                && (self.outputs.is_empty() || stream.cancelled())
            {
                return Ended::Exited { code, timed_out };
            }
            self.feed(stream);
            let pumped = self.pump(stream, self.exit.is_some().then(|| silent_since + DRAIN), rules.deadline);
            let now = Instant::now();
            match pumped {
                Pumped::Something => silent_since = now,
                Pumped::Nothing => {}
                // What the host has no room for yet is not silence.
                Pumped::NoRoom => (silent_since, drained_by) = (now, now + LONG_DRAIN),
            }
            if let Some(code) = self.exit
                && (now >= silent_since + DRAIN || now >= drained_by)
            {
                return Ended::Exited { code, timed_out };
            }
        }
    }

    fn obey(&mut self, order: &Control) {
        match order {
            Control::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    resize(terminal, *size);
                }
            }
            Control::Signal { signal } => {
                if let Ok(signal) = Signal::try_from(*signal) {
                    self.signal(signal);
                }
            }
            Control::Stop | Control::Cancel => self.signal(Signal::SIGKILL),
            Control::Restart => {}
        }
    }

    /// Writes input as far as the process takes it, without waiting.
    fn feed(&mut self, stream: &Stream) {
        let Some(stdin) = &mut self.stdin else {
            // Input for a program that reads none is taken and forgotten, so that the host's credit comes back.
            while stream.take_input().is_some() {}
            return;
        };
        loop {
            if self.pending_input.is_empty() {
                match stream.take_input() {
                    Some(next) => self.pending_input = next,
                    None => break,
                }
            }
            match stdin.write(&self.pending_input) {
                Ok(written) => drop(self.pending_input.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The process has closed its input; what is left is for nobody.
                    self.pending_input.clear();
                    self.stdin = None;
                    return;
                }
            }
        }
        if stream.input_ended() {
            if self.terminal.is_some() {
                // End of file on a terminal is a character.
                let _ = stdin.write(&[4]);
            }
            self.stdin = None;
        }
    }

    /// Waits for something to do and reads output for which there is room.
    fn pump(&mut self, stream: &Stream, until: Option<Instant>, deadline: Option<Instant>) -> Pumped {
        let room = stream.room();
        let mut ready = Vec::new();
        {
            let mut descriptors = vec![PollFd::new(stream.wake(), PollFlags::POLLIN)];
            let has_stdin = !self.pending_input.is_empty() && self.stdin.is_some();
            if let (true, Some(stdin)) = (has_stdin, &self.stdin) {
                descriptors.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
            }
            let first_output = descriptors.len();
            if room > 0 {
                descriptors.extend(self.outputs.iter().map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            }
            let patience = [until, deadline]
                .into_iter()
                .flatten()
                .map(|moment| moment.saturating_duration_since(Instant::now()))
                .min();
            // A deadline that has passed was acted on; only the end of the process is awaited then.
            let patience = patience.map(|patience| if patience.is_zero() { DRAIN } else { patience });
            if wait(&mut descriptors, patience).is_err() {
                return Pumped::Nothing;
            }
            if room == 0 {
                return Pumped::NoRoom;
            }
            ready.extend(
                descriptors[first_output..]
                    .iter()
                    .enumerate()
                    .filter(|(_, d)| d.any().unwrap_or(false))
                    .map(|(i, _)| i),
            );
        }
        let mut pumped = Pumped::Nothing;
        let mut buffer = vec![0; room];
        for index in ready.into_iter().rev() {
            // Less than before, after another output; or more, if credit has come meanwhile.
            let room = stream.room().min(buffer.len());
            if room == 0 {
                break;
            }
            let (kind, pipe) = &mut self.outputs[index];
            match pipe.read(&mut buffer[..room]) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // EIO is how a terminal says that its other end is closed.
                Ok(0) | Err(_) => drop(self.outputs.remove(index)),
                Ok(length) => {
                    let _ = stream.output(*kind, &buffer[..length]);
                    pumped = Pumped::Something;
                }
            }
        }
        pumped
    }

    /// Whatever it started in its group goes with it.
    pub(crate) fn end_group(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// What is still in the pipes, as far as there is room.
    fn pass_on_the_rest(&mut self, stream: &Stream) {
        let until = Instant::now() + DRAIN;
        while !self.outputs.is_empty() && stream.room() > 0 && Instant::now() < until {
            if self.pump(stream, Some(until), None) != Pumped::Something {
                return;
            }
        }
    }

    /// SIGTERM, grace, SIGKILL; waits for the end. Output of these last moments is passed on as far as there is room.
    pub(crate) fn end(&mut self, stream: &Stream, grace: Duration) -> i32 {
        self.signal(Signal::SIGTERM);
        let mut deadline = Some(Instant::now() + grace);
        self.stdin = None;
        loop {
            stream.quiet();
            // It may have ended before it was asked to.
            self.exit = self.exit.or_else(|| stream.next_exit());
            if let Some(code) = self.exit {
                self.end_group();
                self.pass_on_the_rest(stream);
                return code;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.signal(Signal::SIGKILL);
                deadline = None;
            }
            self.pump(stream, deadline, None);
        }
    }
}

/// Reports a life's end that is the end of its stream.
pub(crate) fn exited(stream: &Stream, code: i32, timed_out: bool) {
    stream.finish(Ok(Reply::Exited { code, timed_out }));
}

fn window(size: TerminalSize) -> nix::pty::Winsize {
    nix::pty::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

fn resize(terminal: &OwnedFd, size: TerminalSize) {
    sys::set_window(terminal, &window(size));
}
