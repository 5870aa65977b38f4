//! One program, once.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_protocol::{ErrorCode, ExecRequest, Kind, Reply};

use crate::files;
use crate::life::{Ended, Life, Program, Rules, exited};
use crate::serve::Services;
use crate::wire::{Stream, failure, io_failure};

/// Exit statuses of a shell for a program that cannot be started.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

pub(crate) fn run(services: &Services, stream: &Arc<Stream>, request: &ExecRequest) {
    let Some(name) = request.argv.first() else {
        return stream.finish(Err(failure(ErrorCode::Invalid, "the command is empty")));
    };
    for file in &request.files {
        if let Err(failed) = files::write(file.content.as_bytes(), &file.path, file.mode, true) {
            return stream.finish(Err(failed));
        }
    }
    if let Some(workdir) = &request.workdir
        && !std::path::Path::new(workdir).is_dir()
    {
        return stream.finish(Err(failure(ErrorCode::NotFound, format!("no working directory {workdir}"))));
    }
    let deadline = request.timeout_ms.map(|milliseconds| Instant::now() + Duration::from_millis(milliseconds));
    let program = Program {
        argv: &request.argv,
        env: &request.env,
        workdir: request.workdir.as_deref(),
        terminal: request.terminal,
        stdin: request.stdin,
    };
    let (mut life, pid) = match Life::start(services, stream, &program) {
        Ok(started) => started,
        Err(error) => return not_started(stream, name, &error),
    };
    stream.reply(&Reply::Started { pid }, false);
    match life.run(stream, &Rules { deadline, supervised: false }) {
        Ended::Exited { code, timed_out } => exited(stream, code, timed_out),
        // Only a supervised life ends so.
        Ended::Restart | Ended::Stop => exited(stream, NOT_FOUND, false),
    }
}

/// A program that is not there is an ordinary result, as in a shell.
fn not_started(stream: &Stream, name: &str, error: &io::Error) {
    let (code, line) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => (NOT_FOUND, format!("exec: {name}: not found\n")),
        Some(libc::EACCES | libc::ENOEXEC) => (NOT_EXECUTABLE, format!("exec: {name}: not executable: {error}\n")),
        _ => return stream.finish(Err(io_failure(format!("start {name}"), error))),
    };
    stream.reply(&Reply::Started { pid: 0 }, false);
    let line = &line.as_bytes()[..line.len().min(stream.room())];
    let _ = stream.output(Kind::ErrorOutput, line);
    exited(stream, code, false);
}
