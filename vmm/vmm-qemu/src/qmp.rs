//! QEMU's monitor protocol: JSON lines over a socket, commands and events mixed.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use vmm::VmCommand;

use crate::error::QemuError;

/// Longest line QEMU may send.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Lines read ahead; QEMU waits when there are more.
const READ_AHEAD: usize = 64;

/// One line from QEMU.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    Greeting,
    Return(Value),
    Error(String),
    Event { name: String, data: Value },
}

/// What reaches the thread that looks after a machine.
enum Input {
    Line(Line),
    Command(VmCommand),
    Gone(io::Error),
}

/// What [`Monitor::hear`] heard.
#[derive(Debug)]
pub(crate) enum Heard {
    Event {
        name: String,
        data: Value,
    },
    Command(VmCommand),
    /// Nothing, for as long as was asked for.
    Silence,
    /// QEMU closed the monitor.
    Ended,
}

/// Our end of the monitor. Lines are read by a thread of their own, so that commands for the VM can be waited for in
/// the same place.
#[derive(Debug)]
pub(crate) struct Monitor {
    writer: UnixStream,
    inputs: Receiver<Input>,
    sender: SyncSender<Input>,
    /// Heard while an answer was awaited.
    held: VecDeque<Heard>,
    /// QEMU answers in order: counting tells a late answer from the one that is awaited.
    sent: u64,
    answered: u64,
    gone: Option<io::ErrorKind>,
    during: &'static str,
}

impl Monitor {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        let (sender, inputs) = sync_channel(READ_AHEAD);
        let lines = sender.clone();
        let reader = BufReader::new(socket.try_clone()?);
        thread::Builder::new().name("monitor".to_owned()).spawn(move || read(reader, &lines))?;
        Ok(Self {
            writer: socket,
            inputs,
            sender,
            held: VecDeque::new(),
            sent: 0,
            answered: 0,
            gone: None,
            during: "start",
        })
    }

    /// From now on [`Self::hear`] hears `commands` too.
    pub(crate) fn take_commands(&self, commands: Receiver<VmCommand>) -> io::Result<()> {
        let sender = self.sender.clone();
        let forward = move || commands.into_iter().all(|command| sender.send(Input::Command(command)).is_ok());
        thread::Builder::new().name("commands".to_owned()).spawn(forward).map(drop)
    }

    /// Names what is going on, for errors.
    pub(crate) fn during(&mut self, step: &'static str) {
        self.during = step;
    }

    /// Sends commands without waiting; QEMU takes them in order.
    pub(crate) fn send(&mut self, commands: &[(&str, Value)]) -> Result<(), QemuError> {
        let text: String = commands.iter().map(|(command, arguments)| encode(command, arguments)).collect();
        self.sent += commands.len() as u64;
        self.writer.write_all(text.as_bytes()).map_err(|source| self.broken(source))
    }

    /// An answer is coming to a command that was not sent here.
    pub(crate) fn expect_answer(&mut self) {
        self.sent += 1;
    }

    /// Sends one command and waits for its answer.
    pub(crate) fn run(&mut self, command: &str, arguments: Value, deadline: Instant) -> Result<(), QemuError> {
        self.send(&[(command, arguments)])?;
        self.answers(&[command], deadline).map(drop)
    }

    /// Gives QEMU a descriptor under `name`.
    pub(crate) fn send_descriptor(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), QemuError> {
        let text = encode("getfd", &json!({ "fdname": name }));
        let descriptors = [descriptor.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let parts = [IoSlice::new(text.as_bytes())];
        self.sent += 1;
        match sendmsg::<()>(self.writer.as_raw_fd(), &parts, &control, MsgFlags::empty(), None) {
            Ok(sent) if sent == text.len() => Ok(()),
            Ok(_) => Err(self.broken(io::ErrorKind::WriteZero.into())),
            Err(error) => Err(self.broken(error.into())),
        }
    }

    /// Waits for the answers to `commands`, the last that were sent, in order. Events are kept for [`Self::hear`].
    pub(crate) fn answers(&mut self, commands: &[&str], deadline: Instant) -> Result<Value, QemuError> {
        let mut last = Value::Null;
        let before = self.sent - commands.len() as u64;
        for (command, number) in commands.iter().zip(before + 1..) {
            last = loop {
                match self.line(deadline)? {
                    Line::Event { name, data } => self.held.push_back(Heard::Event { name, data }),
                    _ if self.answered != number => {}
                    Line::Return(value) => break value,
                    Line::Error(reason) => {
                        return Err(QemuError::Refused { command: (*command).to_owned(), reason });
                    }
                    Line::Greeting => {}
                }
            };
        }
        Ok(last)
    }

    /// Waits until a migration, in or out, has completed.
    pub(crate) fn migration_completed(&mut self, deadline: Instant) -> Result<(), QemuError> {
        loop {
            match self.line(deadline)? {
                Line::Event { name, data } if name == "MIGRATION" => match data["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed" | "cancelled") => {
                        return Err(QemuError::Refused {
                            command: "migration".to_owned(),
                            reason: "it failed; see the log".to_owned(),
                        });
                    }
                    _ => {}
                },
                Line::Error(reason) => return Err(QemuError::Refused { command: "migration".to_owned(), reason }),
                Line::Return(_) | Line::Greeting | Line::Event { .. } => {}
            }
        }
    }

    /// The next event or command; [`Heard::Silence`] after `patience`, [`Heard::Ended`] again and again.
    pub(crate) fn hear(&mut self, patience: Option<Duration>) -> Heard {
        if let Some(heard) = self.held.pop_front() {
            return heard;
        }
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            match self.input(deadline) {
                Ok(Input::Line(Line::Event { name, data })) => return Heard::Event { name, data },
                Ok(Input::Line(_)) => {}
                Ok(Input::Command(command)) => return Heard::Command(command),
                Ok(Input::Gone(_)) => return Heard::Ended,
                Err(Silent) => return Heard::Silence,
            }
        }
    }

    /// Whether an event that satisfies `is_it` came while an answer was awaited.
    pub(crate) fn holds(&self, is_it: impl Fn(&str, &Value) -> bool) -> bool {
        self.held.iter().any(|heard| matches!(heard, Heard::Event { name, data } if is_it(name, data)))
    }

    fn line(&mut self, deadline: Instant) -> Result<Line, QemuError> {
        loop {
            match self.input(Some(deadline)) {
                Ok(Input::Line(line)) => return Ok(line),
                Ok(Input::Command(command)) => self.held.push_back(Heard::Command(command)),
                Err(Silent) => return Err(QemuError::TooSlow { what: self.during }),
                Ok(Input::Gone(source)) => {
                    return Err(match source.kind() {
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                            QemuError::Ended { during: self.during, said: String::new() }
                        }
                        _ => self.broken(source),
                    });
                }
            }
        }
    }

    fn input(&mut self, deadline: Option<Instant>) -> Result<Input, Silent> {
        if let Some(kind) = self.gone {
            return Ok(Input::Gone(kind.into()));
        }
        let input = match deadline {
            None => self.inputs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => self.inputs.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        match input {
            Ok(Input::Gone(source)) => self.gone = Some(source.kind()),
            Ok(Input::Line(line)) => {
                self.answered += u64::from(matches!(line, Line::Return(_) | Line::Error(_)));
                return Ok(Input::Line(line));
            }
            Ok(command) => return Ok(command),
            Err(RecvTimeoutError::Timeout) => return Err(Silent),
            // We hold a sender ourselves.
            Err(RecvTimeoutError::Disconnected) => self.gone = Some(io::ErrorKind::UnexpectedEof),
        }
        self.input(deadline)
    }

    fn broken(&self, source: io::Error) -> QemuError {
        QemuError::Monitor { during: self.during, source }
    }
}

/// Nothing was heard in time.
struct Silent;

/// Reads lines until there are no more, or nobody wants them.
fn read(mut from: BufReader<impl Read>, to: &SyncSender<Input>) {
    loop {
        let (input, goes_on) = match next_line(&mut from) {
            Ok(line) => (Input::Line(line), true),
            Err(error) => (Input::Gone(error), false),
        };
        if to.send(input).is_err() || !goes_on {
            return;
        }
    }
}

fn next_line(from: &mut BufReader<impl Read>) -> io::Result<Line> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => parse(&line),
        _ if line.len() > MAX_LINE_BYTES => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a line of more than 1 MiB"))
        }
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn encode(command: &str, arguments: &Value) -> String {
    let message = if arguments.is_null() {
        json!({ "execute": command })
    } else {
        json!({ "execute": command, "arguments": arguments })
    };
    format!("{message}\n")
}

#[derive(Deserialize)]
struct RawLine {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<RawError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct RawError {
    desc: String,
}

fn parse(line: &[u8]) -> io::Result<Line> {
    let raw: RawLine = serde_json::from_slice(line)?;
    match raw {
        RawLine { greeting: Some(_), .. } => Ok(Line::Greeting),
        RawLine { returned: Some(value), .. } => Ok(Line::Return(value)),
        RawLine { error: Some(error), .. } => Ok(Line::Error(error.desc)),
        RawLine { event: Some(name), data, .. } => Ok(Line::Event { name, data }),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "neither answer nor event")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(parse(br#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#).unwrap(), Line::Greeting);
        assert_eq!(parse(br#"{"return": {}}"#).unwrap(), Line::Return(json!({})));
        let refused = br#"{"error": {"class": "GenericError", "desc": "no such fd"}}"#;
        assert_eq!(parse(refused).unwrap(), Line::Error("no such fd".to_owned()));
        let event = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "completed"}}"#;
        assert_eq!(
            parse(event).unwrap(),
            Line::Event { name: "MIGRATION".to_owned(), data: json!({"status": "completed"}) }
        );
        assert!(parse(b"{}").is_err());
        assert!(parse(b"hello").is_err());
    }

    #[test]
    fn events_between_answers_are_passed_over_and_a_refusal_names_its_command() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        theirs
            .write_all(
                b"{\"QMP\": {}}\r\n{\"return\": {}}\r\n{\"event\": \"STOP\"}\r\n{\"error\": {\"desc\": \"no\"}}\r\n",
            )
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        monitor.send(&[("qmp_capabilities", Value::Null), ("stop", Value::Null)]).unwrap();
        let error = monitor.answers(&["qmp_capabilities", "stop"], deadline).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `stop`: no");
    }

    #[test]
    fn silence_and_an_ended_qemu_are_different_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        monitor.send(&[("stop", Value::Null)]).unwrap();
        assert!(matches!(monitor.answers(&["stop"], soon), Err(QemuError::TooSlow { .. })));
        drop(theirs);
        let later = Instant::now() + Duration::from_secs(5);
        assert!(matches!(monitor.answers(&["stop"], later), Err(QemuError::Ended { .. })));
        assert!(matches!(monitor.hear(None), Heard::Ended));
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_commands() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        assert!(monitor.run("stop", Value::Null, Instant::now() + Duration::from_millis(20)).is_err());
        theirs.write_all(b"{\"error\": {\"desc\": \"late\"}}\n{\"return\": 2}\n").unwrap();
        monitor.send(&[("cont", Value::Null)]).unwrap();
        assert_eq!(monitor.answers(&["cont"], Instant::now() + Duration::from_secs(5)).unwrap(), json!(2));
    }

    #[test]
    fn events_and_commands_that_came_before_an_answer_are_heard_after_it_in_order() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        theirs.write_all(b"{\"event\": \"STOP\"}\n{\"return\": {}}\n").unwrap();
        monitor.run("stop", Value::Null, Instant::now() + Duration::from_secs(5)).unwrap();
        assert!(monitor.holds(|name, _| name == "STOP"));
        let (sender, commands) = std::sync::mpsc::channel();
        monitor.take_commands(commands).unwrap();
        sender.send(VmCommand::Pause).unwrap();
        assert!(matches!(monitor.hear(None), Heard::Event { name, .. } if name == "STOP"));
        assert!(matches!(monitor.hear(None), Heard::Command(VmCommand::Pause)));
        assert!(matches!(monitor.hear(Some(Duration::from_millis(1))), Heard::Silence));
    }
}
