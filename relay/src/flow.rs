//! One connection that is open: data moves between its smoltcp socket and the queues of its task.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, State};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::host::{FromHost, PIECE_BYTES, Queues, ToHost};

pub(crate) struct Open {
    pub(crate) handle: SocketHandle,
    pub(crate) queues: Queues,
    pub(crate) task: AbortHandle,
    /// Data that the stack had no room for yet.
    pub(crate) pending: Bytes,
    pub(crate) host_ended: bool,
    pub(crate) guest_ended: bool,
    pub(crate) used: Instant,
}

impl Open {
    pub(crate) fn pass_to_guest(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while socket.may_send() && !self.host_ended {
            if self.pending.is_empty() {
                match self.queues.from_host.try_recv() {
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
        while socket.can_recv() {
            let Ok(permit) = self.queues.to_host.try_reserve() else { break };
            let mut piece = BytesMut::zeroed(PIECE_BYTES.min(socket.recv_queue()));
            match socket.recv_slice(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    piece.truncate(length);
                    permit.send(ToHost::Data(piece.freeze()));
                    self.used = Instant::now();
                    moved = true;
                }
            }
        }
        // The guest's FIN, once everything before it has been taken; a reset is no end.
        let finished = !socket.can_recv() && matches!(socket.recv(|_| (0, ())), Err(RecvError::Finished));
        if finished
            && !self.guest_ended
            && let Ok(permit) = self.queues.to_host.try_reserve()
        {
            permit.send(ToHost::End);
            self.guest_ended = true;
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
        !self.guest_ended && self.queues.to_host.is_closed()
    }

    /// `Closed` without both ends' FIN is a reset; the host's socket goes with the task. A reset of ours leaves with
    /// the next poll, and until then the socket knows its peer. Back in `Listen`, the guest gave up while it was
    /// answered: the next SYN must not find this socket.
    pub(crate) fn over(&self, socket: &Socket<'_>) -> bool {
        let silent = match socket.state() {
            State::Listen => true,
            State::Closed => socket.remote_endpoint().is_none(),
            State::TimeWait => self.guest_ended || self.unwritable(),
            _ => false,
        };
        silent && (!socket.can_recv() || self.unwritable())
    }
}
