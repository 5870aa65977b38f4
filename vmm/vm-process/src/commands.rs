//! Standard input: the lifeline, and commands for the VM.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use vmm::{CommandFailed, FailureKind, MAX_COMMAND_BYTES, VmCommand, VmEvent, VmExit};

use crate::report;

/// Commands as they come, also before the VM runs. Ends this process, and with it the VM, when standard input closes.
pub(crate) fn follow() -> Receiver<VmCommand> {
    let (sender, commands) = mpsc::channel();
    thread::spawn(move || {
        let mut lifeline = BufReader::new(std::io::stdin());
        while let Some(line) = next_line(&mut lifeline) {
            match parse(&line) {
                // Nobody may take commands any more: the lifeline is followed all the same.
                Ok(command) => drop(sender.send(command)),
                Err(failed) => report::report(&VmEvent::CommandFailed(failed)),
            }
        }
        report::end(VmExit::Stopped)
    });
    commands
}

/// Answers for a driver that cannot.
pub(crate) fn refuse(commands: Receiver<VmCommand>, driver: &'static str) {
    thread::spawn(move || commands.into_iter().for_each(|command| report::report(&command.unsupported_by(driver))));
}

/// A line, or as much of it as is too much; `None` at the end.
fn next_line(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_COMMAND_BYTES as u64 + 1).read_until(b'\n', &mut line).ok()?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Some(line);
    }
    if line.len() > MAX_COMMAND_BYTES {
        skip_line(from)?;
        return Some(line);
    }
    None
}

fn skip_line(from: &mut impl BufRead) -> Option<()> {
    loop {
        let available = from.fill_buf().ok().filter(|bytes| !bytes.is_empty())?;
        let end = available.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(available.len(), |end| end + 1);
        from.consume(count);
        if end.is_some() {
            return Some(());
        }
    }
}

fn parse(line: &[u8]) -> Result<VmCommand, CommandFailed> {
    let unknown =
        |reason: String| CommandFailed { command: String::new(), kind: FailureKind::Unknown, reason, hint: None };
    if line.len() > MAX_COMMAND_BYTES {
        return Err(unknown(format!("a command of more than {MAX_COMMAND_BYTES} bytes")));
    }
    serde_json::from_slice(line).map_err(|error| unknown(format!("that is no command: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(input: &[u8]) -> Vec<Result<VmCommand, FailureKind>> {
        let mut input = BufReader::with_capacity(100, input);
        std::iter::from_fn(|| next_line(&mut input)).map(|line| parse(&line).map_err(|failed| failed.kind)).collect()
    }

    #[test]
    fn a_line_is_a_command_or_says_that_it_is_none() {
        let input = b"{\"command\":\"pause\"}\n\nhello\n{\"command\":\"fly\"}\n{\"command\":\"resume\"}\n{\"comm";
        let no = Err(FailureKind::Unknown);
        assert_eq!(kinds(input), [Ok(VmCommand::Pause), no.clone(), no.clone(), no, Ok(VmCommand::Resume)]);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_whole() {
        let long = [vec![b'x'; 3 * MAX_COMMAND_BYTES], b"\n{\"command\":\"pause\"}\n".to_vec()].concat();
        assert_eq!(kinds(&long), [Err(FailureKind::Unknown), Ok(VmCommand::Pause)]);
    }
}
