//! QEMU's monitor protocol: JSON lines over a socket, commands and events mixed.

use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::QemuError;

/// Longest line QEMU may send.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// One line from QEMU.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    Greeting,
    Return(Value),
    Error(String),
    Event { name: String, data: Value },
}

/// Our end of the monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    partial: Vec<u8>,
    during: &'static str,
}

impl Monitor {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        let reader = BufReader::new(socket.try_clone()?);
        Ok(Self { writer: socket, reader, partial: Vec::new(), during: "start" })
    }

    /// Names what is going on, for errors.
    pub(crate) fn during(&mut self, step: &'static str) {
        self.during = step;
    }

    /// Sends commands without waiting; QEMU takes them in order.
    pub(crate) fn send(&mut self, commands: &[(&str, Value)]) -> Result<(), QemuError> {
        let text: String = commands.iter().map(|(command, arguments)| encode(command, arguments)).collect();
        self.writer.write_all(text.as_bytes()).map_err(|source| self.broken(source))
    }

    /// Gives QEMU a descriptor under `name`.
    pub(crate) fn send_descriptor(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), QemuError> {
        let text = encode("getfd", &json!({ "fdname": name }));
        let descriptors = [descriptor.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let parts = [IoSlice::new(text.as_bytes())];
        match sendmsg::<()>(self.writer.as_raw_fd(), &parts, &control, MsgFlags::empty(), None) {
            Ok(sent) if sent == text.len() => Ok(()),
            Ok(_) => Err(self.broken(io::ErrorKind::WriteZero.into())),
            Err(error) => Err(self.broken(error.into())),
        }
    }

    /// Waits for the answers to `commands` sent before, in order, passing over events.
    pub(crate) fn answers(&mut self, commands: &[&str], deadline: Instant) -> Result<Value, QemuError> {
        let mut last = Value::Null;
        for command in commands {
            last = loop {
                match self.line(deadline)? {
                    Line::Return(value) => break value,
                    Line::Error(reason) => {
                        return Err(QemuError::Refused { command: (*command).to_owned(), reason });
                    }
                    Line::Greeting | Line::Event { .. } => {}
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

    /// Follows events until QEMU closes the monitor, or `event` has heard enough; `event` says what is to be done about each, and about silence.
    pub(crate) fn follow(&mut self, mut event: impl FnMut(Heard<'_>) -> Reaction) {
        let mut patience = None;
        loop {
            let _ = self.writer.set_read_timeout(patience);
            let reaction = match self.next_line() {
                Ok(Line::Event { name, data }) => event(Heard::Event { name: &name, data: &data }),
                Ok(_) => continue,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    event(Heard::Silence)
                }
                Err(_) => return,
            };
            if reaction.done {
                return;
            }
            if let Some(command) = reaction.command
                && self.send(&[(command, Value::Null)]).is_err()
            {
                return;
            }
            patience = reaction.listen_for;
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<Line, QemuError> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.writer.set_read_timeout(Some(left)).map_err(|source| self.broken(source))?;
        self.next_line().map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                QemuError::Ended { during: self.during, said: String::new() }
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => QemuError::TooSlow { what: self.during },
            _ => self.broken(source),
        })
    }

    fn next_line(&mut self) -> io::Result<Line> {
        loop {
            let available = match self.reader.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(available.len(), |end| end + 1);
            self.partial.extend_from_slice(&available[..taken]);
            self.reader.consume(taken);
            if self.partial.len() > MAX_LINE_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of more than 1 MiB"));
            }
            if end.is_some() {
                let line = parse(&self.partial);
                self.partial.clear();
                return line;
            }
        }
    }

    fn broken(&self, source: io::Error) -> QemuError {
        QemuError::Monitor { during: self.during, source }
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

/// What [`Monitor::follow`] heard.
pub(crate) enum Heard<'a> {
    Event {
        name: &'a str,
        data: &'a Value,
    },
    /// Nothing, for as long as was asked for.
    Silence,
}

/// What is to be done about it.
#[derive(Default)]
pub(crate) struct Reaction {
    pub(crate) command: Option<&'static str>,
    /// Call back when nothing is heard for this long; `None` waits for ever.
    pub(crate) listen_for: Option<Duration>,
    /// Nothing that follows matters.
    pub(crate) done: bool,
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
        let error = monitor.answers(&["qmp_capabilities", "stop"], deadline).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `stop`: no");
    }

    #[test]
    fn silence_and_an_ended_qemu_are_different_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(monitor.answers(&["stop"], soon), Err(QemuError::TooSlow { .. })));
        drop(theirs);
        assert!(matches!(monitor.answers(&["stop"], soon), Err(QemuError::Ended { .. })));
    }
}
