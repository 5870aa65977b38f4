//! Channels over real sockets.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::{MaybeTlsStream, connect_async};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::hub::Hub;
use crate::listener::Listener;
use crate::server;

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A test that waits for longer has failed.
const DEADLINE: Duration = Duration::from_secs(20);

/// An engine without daemons; it ends with the test.
struct Engine {
    hub: Arc<Hub>,
    address: String,
    serving: JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Engine {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("ws://{}", listener.local_addr().expect("an address"));
        let hub = Hub::new();
        let serving = tokio::spawn(server::accept_tcp(
            listener,
            server::Shared::new(
                Arc::clone(&hub),
                Arc::default(),
                Listener::parse(None).expect("a listener"),
                CancellationToken::new(),
            ),
        ));
        Self { hub, address, serving }
    }

    async fn attach(&self, end: &ChannelRef) -> Client {
        let direction = if end.direction == Direction::Read { "read" } else { "write" };
        let ChannelRef { channel_id, access_key, .. } = end;
        let url = format!("{}/ws/channels/{channel_id}?key={access_key}&dir={direction}", self.address);
        connect_async(url).await.expect("an end").0
    }
}

/// What the reader gets until its socket ends, with the code and reason of the Close frame.
async fn read(mut socket: Client) -> (Vec<String>, Option<(u16, String)>) {
    let mut items = Vec::new();
    loop {
        let frame = tokio::time::timeout(DEADLINE, socket.next()).await.expect("in time");
        match frame {
            Some(Ok(Message::Text(text))) => items.push(text.as_str().to_owned()),
            Some(Ok(Message::Close(close))) => {
                return (items, close.map(|close| (close.code.into(), close.reason.as_str().to_owned())));
            }
            Some(Ok(_)) => {}
            other => panic!("the socket ended without a Close frame: {other:?}"),
        }
    }
}

/// A writer sends two items and then `ending`, or nothing more; the reader comes before or after that.
async fn passes(ending: Option<Option<CloseFrame>>, reader_first: bool) -> Option<(u16, String)> {
    let engine = Engine::start().await;
    let pair = engine.hub.channels.create(Owner::Connection(ConnId(1)), 8).expect("a channel");
    let early = if reader_first { Some(engine.attach(&pair.reader).await) } else { None };
    let mut writer = engine.attach(&pair.writer).await;
    for item in ["one", "two"] {
        writer.send(Message::text(item)).await.expect("sent");
    }
    match ending {
        Some(close) => writer.send(Message::Close(close)).await.expect("closed"),
        None => drop(writer),
    }
    let reader = match early {
        Some(reader) => reader,
        None => engine.attach(&pair.reader).await,
    };
    let (items, close) = read(reader).await;
    assert_eq!(items, ["one", "two"]);
    close
}

#[tokio::test]
async fn a_writer_that_closes_has_finished() {
    for reader_first in [true, false] {
        assert_eq!(passes(Some(None), reader_first).await, None);
        let complete = CloseFrame { code: CloseCode::Normal, reason: "stream_complete".into() };
        assert_eq!(passes(Some(Some(complete)), reader_first).await, None);
    }
}

#[tokio::test]
async fn a_writer_that_breaks_off_has_not_finished() {
    for reader_first in [true, false] {
        let broken = Some((1011, "the writer broke off".to_owned()));
        assert_eq!(passes(None, reader_first).await, broken);
        let failed = CloseFrame { code: CloseCode::Error, reason: "disk".into() };
        assert_eq!(passes(Some(Some(failed)), reader_first).await, broken);
    }
}

/// The reader's end is taken without a socket, so that nothing hides in one.
#[tokio::test]
async fn a_channel_holds_four_mebibytes_and_loses_nothing() {
    const PIECES: usize = 300;
    const PIECE_BYTES: usize = 64 * 1024;
    let engine = Engine::start().await;
    let pair = engine.hub.channels.create(Owner::Connection(ConnId(1)), 1024).expect("a channel");
    let end = engine.hub.channels.attach(&pair.reader.channel_id, &pair.reader.access_key, Direction::Read);
    let Some(End::Reader(mut reader)) = end else { panic!("no reader's end") };
    let mut writer = engine.attach(&pair.writer).await;
    let sending = tokio::spawn(async move {
        for _ in 0..PIECES {
            writer.send(Message::binary(vec![1; PIECE_BYTES])).await.expect("sent");
        }
        // Larger than the whole buffer, and still carried.
        writer.send(Message::binary(vec![2; 6 * 1024 * 1024])).await.expect("sent");
        writer.close(None).await.expect("closed");
        while let Some(Ok(_)) = writer.next().await {}
    });
    let mut sizes = Vec::new();
    let receiving = async {
        while let Some(item) = reader.pipe.next().await {
            assert!(reader.pipe.waiting() < 64, "{} items ahead of the reader", reader.pipe.waiting() + 1);
            let Item::Binary(bytes) = item else { panic!("another kind of item") };
            sizes.push(bytes.len());
            // Lets the writer run as far ahead as it may.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.expect("in time");
    sending.await.expect("the writer");
    assert_eq!((sizes.len(), sizes.pop()), (PIECES + 1, Some(6 * 1024 * 1024)));
    assert!(sizes.iter().all(|size| *size == PIECE_BYTES));
    assert!(reader.pipe.is_whole());
}

/// The reader is a client as it comes, which takes no frame above 16 MiB.
#[tokio::test]
async fn items_larger_than_a_frame_may_be_arrive_whole_and_as_one() {
    const ITEM_BYTES: usize = 2 * MAX_FRAME_BYTES + 1;
    let engine = Engine::start().await;
    let pair = engine.hub.channels.create(Owner::Connection(ConnId(1)), 8).expect("a channel");
    let mut reader = engine.attach(&pair.reader).await;
    let mut writer = engine.attach(&pair.writer).await;
    let sending = tokio::spawn(async move {
        for kind in [Data::Binary, Data::Text] {
            let [first, second] = [(OpCode::Data(kind), false), (OpCode::Data(Data::Continue), false)]
                .map(|(code, last)| Frame::message(vec![b'x'; MAX_FRAME_BYTES], code, last));
            let third = Frame::message(b"!".to_vec(), OpCode::Data(Data::Continue), true);
            for piece in [first, second, third] {
                writer.send(Message::Frame(piece)).await.expect("sent");
            }
            writer.send(Message::text("small")).await.expect("sent");
        }
        writer.close(None).await.expect("closed");
        while let Some(Ok(_)) = writer.next().await {}
    });
    let mut kinds = Vec::new();
    while let Ok(Some(frame)) = tokio::time::timeout(DEADLINE, reader.next()).await {
        let frame = frame.expect("a frame that the client takes");
        if frame.is_close() {
            break;
        }
        kinds.push((frame.is_text(), frame.len()));
        if frame.len() == ITEM_BYTES {
            let data = frame.into_data();
            assert!(data.starts_with(b"xx") && data.ends_with(b"x!"));
        }
    }
    assert_eq!(kinds, [(false, ITEM_BYTES), (true, 5), (true, ITEM_BYTES), (true, 5)]);
    sending.await.expect("the writer");
}

#[test]
fn a_guest_has_so_many_channels_at_a_time() {
    let channels = Channels::default();
    let guest = || Owner::Vm("mine".into());
    let pairs: Vec<_> = (0..MAX_GUEST_CHANNELS).map(|_| channels.create(guest(), 1).expect("a channel")).collect();
    assert_eq!(channels.create(guest(), 1).err().map(|error| error.code), Some("limit_reached".to_owned()));
    channels.create(Owner::Vm("another".into()), 1).expect("another guest's channel");
    let attach = |end: &ChannelRef| channels.attach(&end.channel_id, &end.access_key, end.direction).expect("an end");
    let writer = attach(&pairs[0].writer);
    drop(attach(&pairs[0].reader));
    assert!(channels.create(guest(), 1).is_err(), "the writer still holds it");
    drop(writer);
    channels.create(guest(), 1).expect("a channel after one has ended");
    // Ended channels are forgotten, open ones are not.
    channels.expire();
    assert_eq!(channels.lock().len(), MAX_GUEST_CHANNELS + 1);
}
