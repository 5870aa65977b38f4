//! The channel's two tasks, and the table of open streams.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_protocol::{
    Control, DATA_CHUNK_BYTES, GuestFailure, Header, HeaderError, Hello, Kind, Reply, Request, StreamId,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::queue::{Arrived, Queue};
use crate::writer::{Hold, Rests, write};

/// Frames that wait for the channel; beyond it, senders wait.
const OUTBOUND_FRAMES: usize = 64;

/// Why a guest did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// The guest tried, and says what went wrong.
    #[error(transparent)]
    Failed(#[from] GuestFailure),
    /// We could not ask: the guest has heard nothing, or not all of it.
    #[error("{0}")]
    Request(String),
    /// The channel has ended: the VM is gone, or going.
    #[error("the guest's channel is closed")]
    Closed,
    /// It did not come to rest in this time: it is too busy to listen, or does not want to. It was told to go on.
    #[error("the guest did not come to rest within {0:?}")]
    NotFrozen(Duration),
    /// The guest broke the protocol; the connection was closed.
    #[error("the guest broke the protocol: {0}")]
    Broken(String),
}

/// The host's end of one guest's channel.
pub(crate) struct Connection {
    outbound: mpsc::Sender<Vec<u8>>,
    table: Arc<Table>,
    next_stream: AtomicU32,
    hello: watch::Receiver<Option<Hello>>,
    ended: CancellationToken,
    /// Asks the writer to stop sending for a while.
    pub(crate) holds: mpsc::Sender<Hold>,
    /// Whoever has the guest frozen, or wants to.
    pub(crate) freezing: Arc<tokio::sync::Mutex<()>>,
    _stop: DropGuard,
}

struct Table {
    streams: Mutex<HashMap<u32, Arc<Queue>>>,
    /// Why the connection ended, once it has.
    cause: Mutex<Option<GuestError>>,
    rests: Arc<Rests>,
}

impl Table {
    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Arc<Queue>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, cause: GuestError) {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
        for (_, queue) in self.streams().drain() {
            queue.close();
        }
    }

    fn cause(&self) -> Option<GuestError> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Connection {
    pub(crate) fn start(channel: std::os::unix::net::UnixStream) -> io::Result<Arc<Self>> {
        channel.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(channel)?.into_split();
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES);
        let (hello_in, hello) = watch::channel(None);
        let (holds, holding) = mpsc::channel(1);
        let rests = Arc::new(Rests::new());
        let streams = Mutex::new(HashMap::new());
        let table = Arc::new(Table { streams, cause: Mutex::new(None), rests: Arc::clone(&rests) });
        let stop = CancellationToken::new();
        let ended = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(write(writer, frames, holding, rests, ended.clone())));
        let of_reader = Arc::clone(&table);
        let reader_ended = ended.clone();
        let reader_stop = stop.clone();
        tokio::spawn(async move {
            let cause = reader_stop.run_until_cancelled(read(reader, &of_reader, &hello_in)).await;
            of_reader.end(cause.unwrap_or(GuestError::Closed));
            reader_ended.cancel();
        });
        Ok(Arc::new(Self {
            outbound,
            table,
            next_stream: AtomicU32::new(1),
            hello,
            ended,
            holds,
            freezing: Arc::default(),
            _stop: stop.drop_guard(),
        }))
    }

    /// Resolves when the guest has said hello; never for a restored clone, whose hello was heard by its template.
    pub(crate) async fn ready(&self) -> Result<Hello, GuestError> {
        let mut hello = self.hello.clone();
        let heard = hello.wait_for(Option::is_some).await.map(|hello| hello.clone());
        heard.ok().flatten().ok_or_else(|| self.cause())
    }

    pub(crate) async fn closed(&self) {
        self.ended.cancelled().await;
    }

    pub(crate) fn cause(&self) -> GuestError {
        self.table.cause().unwrap_or(GuestError::Closed)
    }

    pub(crate) async fn open(self: &Arc<Self>, request: &Request) -> Result<Stream, GuestError> {
        let id = StreamId(self.next_stream.fetch_add(1, Ordering::Relaxed));
        let queue = Arc::new(Queue::new());
        self.table.streams().insert(id.0, Arc::clone(&queue));
        let stream = Stream { id, queue, connection: Arc::clone(self), finished: false };
        if let Some(cause) = self.table.cause() {
            return Err(cause);
        }
        let body = serde_json::to_vec(request).map_err(|error| GuestError::Request(error.to_string()))?;
        stream.send(Kind::Request, false, &body).await?;
        Ok(stream)
    }
}

async fn read(mut reader: OwnedReadHalf, table: &Table, hello: &watch::Sender<Option<Hello>>) -> GuestError {
    let mut body = Vec::new();
    loop {
        match frame(&mut reader, &mut body).await {
            Ok(header) => {
                if let Err(broken) = deliver(header, &body, table, hello) {
                    return GuestError::Broken(broken);
                }
            }
            Err(FrameError::Header(error)) => return GuestError::Broken(error.to_string()),
            Err(FrameError::Ended) => return GuestError::Closed,
        }
    }
}

enum FrameError {
    Header(HeaderError),
    Ended,
}

/// Reads one frame. `body` grows with what arrives, up to the protocol's limit, not with what is announced.
async fn frame(reader: &mut OwnedReadHalf, body: &mut Vec<u8>) -> Result<Header, FrameError> {
    let mut raw = [0; Header::BYTES];
    reader.read_exact(&mut raw).await.map_err(|_| FrameError::Ended)?;
    let header = Header::parse(&raw).map_err(FrameError::Header)?;
    body.clear();
    let length = u64::from(header.length);
    let read = (&mut *reader).take(length).read_to_end(body).await.map_err(|_| FrameError::Ended)?;
    if read as u64 == length { Ok(header) } else { Err(FrameError::Ended) }
}

fn deliver(header: Header, body: &[u8], table: &Table, hello: &watch::Sender<Option<Hello>>) -> Result<(), String> {
    let json = |error: serde_json::Error| format!("a {:?} frame is not understood: {error}", header.kind);
    if header.kind == Kind::Hello {
        let said: Hello = serde_json::from_slice(body).map_err(json)?;
        hello.send_replace(Some(said));
        return Ok(());
    }
    match header.kind {
        Kind::Frozen => {
            table.rests.heard();
            return Ok(());
        }
        // They belong to no stream whose absence could excuse them.
        Kind::Freeze | Kind::Thaw => return Err(format!("a guest does not send {:?} frames", header.kind)),
        _ => {}
    }
    // A frame for a closed stream crossed the end on the wire.
    let Some(queue) = table.streams().get(&header.stream.0).cloned() else { return Ok(()) };
    match header.kind {
        Kind::Reply => {
            let reply: Reply = serde_json::from_slice(body).map_err(json)?;
            if header.last {
                table.streams().remove(&header.stream.0);
            }
            queue.push_reply(reply, header.last, body.len())?;
        }
        Kind::Output | Kind::ErrorOutput => queue.push_data(header.kind, body)?,
        Kind::Credit => {
            let raw = <[u8; 4]>::try_from(body).map_err(|_| "credit is not four bytes".to_owned())?;
            let more = u32::from_le_bytes(raw) as usize;
            if queue.input_credit.available_permits() + more > tokio::sync::Semaphore::MAX_PERMITS / 2 {
                return Err("more credit than can be counted".into());
            }
            queue.input_credit.add_permits(more);
        }
        Kind::Hello | Kind::Request | Kind::Input | Kind::Control | Kind::Freeze | Kind::Frozen | Kind::Thaw => {
            return Err(format!("a guest does not send {:?} frames", header.kind));
        }
    }
    Ok(())
}

/// One request that is under way. Dropping it cancels it.
pub(crate) struct Stream {
    id: StreamId,
    queue: Arc<Queue>,
    connection: Arc<Connection>,
    finished: bool,
}

impl Stream {
    async fn send(&self, kind: Kind, last: bool, body: &[u8]) -> Result<(), GuestError> {
        let sent = self.connection.outbound.send(encode(self.id, kind, last, body)?).await;
        sent.map_err(|_| self.connection.cause())
    }

    pub(crate) fn handle(&self) -> StreamHandle {
        StreamHandle { id: self.id, queue: Arc::clone(&self.queue), connection: Arc::clone(&self.connection) }
    }

    /// The next thing the guest said; taking output gives its credit back. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Arrived, GuestError> {
        if self.finished {
            return Err(GuestError::Closed);
        }
        let Some(arrived) = self.queue.next().await else {
            self.finished = true;
            return Err(self.connection.cause());
        };
        match &arrived {
            Arrived::Data(_, bytes) => self.give_back(bytes.len() as u64),
            Arrived::Reply { last, .. } => self.finished = *last,
        }
        Ok(arrived)
    }

    /// One frame at a time is on its way per stream, however little of them the guest reads.
    fn give_back(&self, bytes: u64) {
        if !self.queue.owe(bytes) {
            return;
        }
        let (id, queue) = (self.id, Arc::clone(&self.queue));
        let frame = move || encode(id, Kind::Credit, false, &queue.settle().to_le_bytes()).unwrap_or_default();
        match self.connection.outbound.try_reserve() {
            Ok(place) => place.send(frame()),
            Err(mpsc::error::TrySendError::Full(())) => {
                let outbound = self.connection.outbound.clone();
                tokio::spawn(async move {
                    if let Ok(place) = outbound.reserve().await {
                        place.send(frame());
                    }
                });
            }
            // The connection has ended; whoever reads hears of it.
            Err(mpsc::error::TrySendError::Closed(())) => {}
        }
    }

    /// The one reply of a request that has only one.
    pub(crate) async fn reply(&mut self) -> Result<Reply, GuestError> {
        loop {
            match self.next().await? {
                Arrived::Reply { reply: Reply::Failed(failure), .. } => return Err(failure.into()),
                Arrived::Reply { reply, .. } => return Ok(reply),
                // Output of a request that has none.
                Arrived::Data(..) => {}
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.connection.table.streams().remove(&self.id.0);
        if let Ok(body) = serde_json::to_vec(&Control::Cancel)
            && let Ok(frame) = encode(self.id, Kind::Control, false, &body)
        {
            send_soon(&self.connection.outbound, frame);
        }
    }
}

/// Sends a small frame from where one cannot wait; when the queue is full, a task waits instead.
fn send_soon(outbound: &mpsc::Sender<Vec<u8>>, frame: Vec<u8>) {
    if let Err(mpsc::error::TrySendError::Full(frame)) = outbound.try_send(frame)
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        let outbound = outbound.clone();
        runtime.spawn(async move { outbound.send(frame).await });
    }
}

/// What may be said on a stream besides reading it; can be held elsewhere.
#[derive(Clone)]
pub(crate) struct StreamHandle {
    id: StreamId,
    queue: Arc<Queue>,
    connection: Arc<Connection>,
}

impl StreamHandle {
    pub(crate) async fn control(&self, control: &Control) -> Result<(), GuestError> {
        let body = serde_json::to_vec(control).map_err(|error| GuestError::Request(error.to_string()))?;
        let frame = encode(self.id, Kind::Control, false, &body)?;
        self.connection.outbound.send(frame).await.map_err(|_| self.connection.cause())
    }

    /// Sends input as the guest takes it. `Closed` when the stream has ended: nobody reads it any more.
    pub(crate) async fn input(&self, mut bytes: &[u8]) -> Result<(), GuestError> {
        while !bytes.is_empty() {
            let length = bytes.len().min(DATA_CHUNK_BYTES);
            let permits = u32::try_from(length).unwrap_or(u32::MAX);
            let credit = self.queue.input_credit.acquire_many(permits).await;
            credit.map_err(|_| GuestError::Closed)?.forget();
            let frame = encode(self.id, Kind::Input, false, &bytes[..length])?;
            self.connection.outbound.send(frame).await.map_err(|_| self.connection.cause())?;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    pub(crate) async fn end_input(&self) -> Result<(), GuestError> {
        let frame = encode(self.id, Kind::Input, true, &[])?;
        self.connection.outbound.send(frame).await.map_err(|_| self.connection.cause())
    }
}

pub(crate) fn encode(stream: StreamId, kind: Kind, last: bool, body: &[u8]) -> Result<Vec<u8>, GuestError> {
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= guest_protocol::MAX_BODY_BYTES)
        .ok_or_else(|| GuestError::Request(format!("a request of {} bytes is too long", body.len())))?;
    let mut frame = Vec::with_capacity(Header::BYTES + body.len());
    frame.extend_from_slice(&Header { length, stream, kind, last }.to_bytes());
    frame.extend_from_slice(body);
    Ok(frame)
}
