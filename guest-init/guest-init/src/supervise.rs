//! The worker's long-running program, life after life.

use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{Control, ErrorCode, Reply, SuperviseRequest};
use nix::poll::{PollFd, PollFlags};

use crate::life::{Ended, Life, Program, Rules};
use crate::serve::Services;
use crate::wire::{Stream, failure, io_failure, wait};

pub(crate) fn run(services: &Services, stream: &Arc<Stream>, request: &SuperviseRequest) {
    if !services.begin_supervision() {
        return stream.finish(Err(failure(ErrorCode::Invalid, "this guest supervises a program already")));
    }
    supervise(services, stream, request);
    services.end_supervision();
}

fn supervise(services: &Services, stream: &Arc<Stream>, request: &SuperviseRequest) {
    let shell = ["/bin/sh".to_owned(), "-c".to_owned(), request.command.clone()];
    let argv = if request.argv.is_empty() { &shell[..] } else { &request.argv[..] };
    let workdir = request.workdir.as_deref();
    let program = Program { argv, env: &request.env, workdir, terminal: None, stdin: false };
    let grace = Duration::from_millis(request.grace_ms);
    loop {
        let (mut life, pid) = match Life::start(services, stream, &program) {
            Ok(started) => started,
            Err(error) => return stream.finish(Err(io_failure(format!("start {}", argv[0]), &error))),
        };
        stream.reply(&Reply::Started { pid }, false);
        let again = match life.run(stream, &Rules { deadline: None, supervised: true }) {
            Ended::Exited { code, .. } => {
                // A next life must not meet what is left of this one.
                life.end_group();
                stream.reply(&Reply::Exited { code, timed_out: false }, false);
                // How long to wait before the next life is the host's to say.
                wait_for_order(stream)
            }
            Ended::Restart => {
                let code = life.end(stream, grace);
                stream.reply(&Reply::Exited { code, timed_out: false }, false);
                true
            }
            Ended::Stop => {
                let code = life.end(stream, grace);
                stream.reply(&Reply::Exited { code, timed_out: false }, false);
                false
            }
        };
        if !again {
            return stream.finish(Ok(Reply::Done));
        }
    }
}

/// `true` to start again, `false` to end.
fn wait_for_order(stream: &Stream) -> bool {
    loop {
        stream.quiet();
        let orphaned = stream.orphaned();
        while let Some(order) = stream.next_order() {
            match order {
                Control::Restart => return true,
                Control::Stop | Control::Cancel => return false,
                Control::Resize(_) | Control::Signal { .. } => {}
            }
        }
        // Whoever could order a next life is gone; another host may want to supervise.
        if orphaned {
            return false;
        }
        if wait(&mut [PollFd::new(stream.wake(), PollFlags::POLLIN)], None).is_err() {
            return false;
        }
    }
}
