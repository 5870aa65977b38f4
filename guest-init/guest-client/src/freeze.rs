//! Guests that stand still while their memory is saved, and guests that start from such a memory.

use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{Renewal, Request};
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::connection::{Connection, GuestError};
use crate::guest::{Adopted, Guest};
use crate::writer::Hold;

/// A guest at rest: nothing is on the channel in either direction, and nothing will be. Dropping it lets both sides go
/// on where they were.
#[must_use = "the guest goes on as soon as this is dropped"]
pub struct Frozen {
    // In this order: the writer hears of the end before another may freeze, and before the connection can end.
    _over: oneshot::Sender<()>,
    _turn: OwnedMutexGuard<()>,
    _connection: Arc<Connection>,
}

impl Frozen {
    /// Everything goes on: what others have asked for meanwhile is sent now.
    pub fn thaw(self) {}
}

impl Guest {
    /// Empties the channel and keeps it empty, so that the guest's memory can be saved. Whoever asks the guest for
    /// something waits. While another freeze lasts, this one waits for its turn, at most `patience` in all.
    ///
    /// # Errors
    /// `NotFrozen` after `patience`, and the channel's end. The guest goes on then.
    pub async fn freeze(&self, patience: Duration) -> Result<Frozen, GuestError> {
        let connection = &self.0;
        let frozen = async {
            let turn = Arc::clone(&connection.freezing).lock_owned().await;
            let (at_rest, rests) = oneshot::channel();
            let (over_sender, over) = oneshot::channel();
            connection.holds.send(Hold { at_rest, over }).await.map_err(|_| connection.cause())?;
            rests.await.map_err(|_| connection.cause())?;
            Ok(Frozen { _over: over_sender, _turn: turn, _connection: Arc::clone(connection) })
        };
        tokio::select! {
            frozen = tokio::time::timeout(patience, frozen) => frozen.unwrap_or(Err(GuestError::NotFrozen(patience))),
            () = connection.closed() => Err(connection.cause()),
        }
    }

    /// Makes a guest that starts from another's memory itself. To be the first that is asked of it.
    ///
    /// # Errors
    /// The step that failed, in the guest's words, and that it was never adopted; the guest is of no use then.
    pub async fn renew(&self, renewal: Renewal) -> Result<Adopted, GuestError> {
        Adopted::from_reply(self.ask(&Request::Renew(Box::new(renewal))).await?)
    }

    /// Sets the guest's clock after it stood still.
    ///
    /// # Errors
    /// The guest's answer.
    pub async fn set_clock(&self, unix_time_ns: u64) -> Result<(), GuestError> {
        self.ask_done(&Request::SetClock { unix_time_ns }).await
    }
}
