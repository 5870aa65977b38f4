//! The task that sends, and how it is made to stand still.
//!
//! ```text
//! hold ─► Freeze ─► Frozen heard: at rest ─► hold given up, for whatever reason ─► Thaw ─► the frames that waited
//! ```

use std::sync::Arc;

use guest_protocol::{Kind, StreamId};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::connection::encode;

/// Asks the writer for a rest.
pub(crate) struct Hold {
    /// Told when the guest has come to rest.
    pub(crate) at_rest: oneshot::Sender<()>,
    /// Ends the rest when its other half is dropped: by who thaws, by who has lost patience, or by a task's end.
    pub(crate) over: oneshot::Receiver<()>,
}

/// Rests that were asked for, and that the guest has come to. A late answer belongs to the oldest question.
pub(crate) struct Rests(watch::Sender<Count>);

#[derive(Clone, Copy, Default)]
struct Count {
    asked: u64,
    heard: u64,
}

impl Rests {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Count::default()))
    }

    fn ask(&self) {
        self.0.send_modify(|count| count.asked += 1);
    }

    /// A guest that says so unasked has said nothing.
    pub(crate) fn heard(&self) {
        self.0.send_modify(|count| count.heard = count.asked.min(count.heard + 1));
    }

    async fn all_heard(&self) {
        // Fails only without a sender, which is `self`.
        let _ = self.0.subscribe().wait_for(|count| count.heard == count.asked).await;
    }
}

/// Sends until nobody is left who could ask for anything.
pub(crate) async fn write(
    mut writer: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Vec<u8>>,
    mut holds: mpsc::Receiver<Hold>,
    rests: Arc<Rests>,
    ended: CancellationToken,
) {
    loop {
        // A rest does not wait for the frames that are queued: there may be new ones for ever.
        let next = tokio::select! {
            biased;
            Some(hold) = holds.recv() => Next::Hold(hold),
            frame = frames.recv() => match frame {
                Some(frame) => Next::Frame(frame),
                None => return,
            },
        };
        let sent = match next {
            Next::Frame(frame) => writer.write_all(&frame).await,
            Next::Hold(hold) => stand_still(&mut writer, hold, &rests, &ended).await,
        };
        if sent.is_err() {
            // The reader finds out as well, and says so to everybody.
            return;
        }
    }
}

enum Next {
    Frame(Vec<u8>),
    Hold(Hold),
}

async fn stand_still(
    writer: &mut OwnedWriteHalf,
    hold: Hold,
    rests: &Rests,
    ended: &CancellationToken,
) -> std::io::Result<()> {
    let Hold { at_rest, mut over } = hold;
    // Given up while another frame was on its way.
    if !matches!(over.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
        return Ok(());
    }
    // Counted first: the answer may be there before the write has returned.
    rests.ask();
    writer.write_all(&empty(Kind::Freeze)).await?;
    let rest = async {
        tokio::select! {
            _ = &mut over => return,
            () = rests.all_heard() => {}
        }
        let _ = at_rest.send(());
        let _ = over.await;
    };
    tokio::select! {
        () = rest => {}
        () = ended.cancelled() => return Err(std::io::ErrorKind::BrokenPipe.into()),
    }
    writer.write_all(&empty(Kind::Thaw)).await
}

fn empty(kind: Kind) -> Vec<u8> {
    encode(StreamId(0), kind, false, &[]).unwrap_or_default()
}
