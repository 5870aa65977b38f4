//! One connection that is open: data moves between its smoltcp socket and the queues of its task.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::host::{FromHost, PIECE_BYTES, Queues, ToHost};

pub(crate) struct Open {
    pub(crate) handle: SocketHandle,
    /// `None`: the guest has sent all, and the task has it.
    to_host: Option<ToHost>,
    from_host: mpsc::Receiver<FromHost>,
    pub(crate) task: AbortHandle,
    /// Data that the stack had no room for yet.
    pending: Bytes,
    host_ended: bool,
    pub(crate) used: Instant,
}

impl Open {
    pub(crate) fn new(handle: SocketHandle, queues: Queues, task: AbortHandle) -> Self {
        Self {
            handle,
            to_host: Some(queues.to_host),
            from_host: queues.from_host,
            task,
            pending: Bytes::new(),
            host_ended: false,
            used: Instant::now(),
        }
    }

    pub(crate) fn pass_to_guest(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while socket.may_send() && !self.host_ended {
            if self.pending.is_empty() {
                match self.from_host.try_recv() {
                    Ok(FromHost::Data(data)) => self.pending = data,
                    Ok(FromHost::End) => {
                        self.host_ended = true;
                        socket.close();
                        return true;
                    }
                    Ok(FromHost::Reset) | Err(mpsc::error::TryRecvError::Disconnected) => {
                        self.host_ended = true;
                        socket.abort();
                        return true;
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                }
            }
            match socket.send_slice(&self.pending) {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    let _ = self.pending.split_to(length);
                    self.used = Instant::now();
                    moved = true;
                }
            }
        }
        moved
    }

    pub(crate) fn pass_to_host(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        let Some(to_host) = &self.to_host else { return false };
        while socket.can_recv() {
            let Ok(permit) = to_host.pieces.try_reserve() else { break };
            let piece = take(socket, PIECE_BYTES);
            if piece.is_empty() {
                break;
            }
            permit.send(piece);
            self.used = Instant::now();
            moved = true;
        }
        // The guest's FIN has come, and nothing more will: what is left is one buffer at most. It is taken now, before
        // the stack forgets the connection.
        let finished = matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if finished
            && !to_host.pieces.is_closed()
            && let Some(to_host) = self.to_host.take()
        {
            let _ = to_host.last.send(take(socket, usize::MAX));
            moved = true;
        }
        moved
    }

    /// Resets a connection whose task can no longer write what the guest sends. Call it when nothing moves: what the
    /// host said before has then left, as far as the guest takes it.
    pub(crate) fn reset_if_broken(&mut self, socket: &mut Socket<'_>) -> bool {
        let said_all = self.host_ended || !self.pending.is_empty();
        let broken = self.unwritable() && said_all && socket.is_active();
        if broken {
            self.host_ended = true;
            socket.abort();
        }
        broken
    }

    fn unwritable(&self) -> bool {
        self.to_host.as_ref().is_some_and(|to_host| to_host.pieces.is_closed())
    }

    /// Whether both ends said their last. The task may still have some of it to write, and ends by itself.
    pub(crate) fn ended_in_order(&self) -> bool {
        self.host_ended && self.to_host.is_none()
    }

    /// Whether the stack is done with the connection. A reset of ours leaves with the next poll, and until then the
    /// socket knows its peer. Back in `Listen`, the guest gave up while it was answered: the next SYN must not find
    /// this socket.
    pub(crate) fn over(socket: &Socket<'_>) -> bool {
        match socket.state() {
            State::Listen | State::TimeWait => true,
            State::Closed => socket.remote_endpoint().is_none(),
            _ => false,
        }
    }
}

/// Up to `limit` bytes of what the guest sent.
fn take(socket: &mut Socket<'_>, limit: usize) -> Bytes {
    let mut piece = BytesMut::zeroed(limit.min(socket.recv_queue()));
    let length = socket.recv_slice(&mut piece).unwrap_or(0);
    piece.truncate(length);
    piece.freeze()
}
