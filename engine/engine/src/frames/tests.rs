//! Frames of a client that keeps the rules, cut anywhere, and of one that does not.

use proptest::prelude::*;

use super::*;

/// An [`Event`], kept.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Close,
}

impl From<Event<'_>> for Told {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text { text, frame } => {
                assert!(frame.is_none_or(|frame| **frame == *text.as_bytes()));
                Self::Text(text.into())
            }
            Event::Binary(bytes) => Self::Binary(bytes.into()),
            Event::Ping(payload) => Self::Ping(payload.into()),
            Event::Close => Self::Close,
        }
    }
}

/// As a client sends it; `first` holds the flags and the opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x6d, 0xb6, 0xb2, 0x80];
    let mut written = Vec::new();
    begin(&mut written, first, payload.len());
    written[1] |= 0x80;
    written.extend_from_slice(&MASK);
    written.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    written
}

fn text(text: &str) -> Told {
    Told::Text(text.into())
}

/// All that `bytes` tell when they arrive in pieces of `length` bytes.
async fn told(bytes: &[u8], length: usize) -> Result<Vec<Told>, FrameError> {
    let (mut incoming, mut told) = (Incoming::default(), Vec::new());
    for mut piece in bytes.chunks(length) {
        while !piece.is_empty() {
            incoming.fill(&mut piece).await.expect("read");
            while let Some(event) = incoming.next()? {
                told.push(event.into());
            }
        }
    }
    Ok(told)
}

async fn check(bytes: &[u8], wanted: Result<Vec<Told>, FrameError>) {
    for length in [1, 2, 3, 7, bytes.len()] {
        assert_eq!(told(bytes, length).await, wanted, "in pieces of {length}");
    }
}

#[tokio::test]
async fn messages_are_told_in_order() {
    let bytes = [
        frame(0x81, b""),
        frame(0x81, "grün".as_bytes()),
        frame(0x89, b"there?"),
        frame(0x8a, b"unasked"),
        frame(0x82, &[0xff]),
        frame(0x88, &[0x03, 0xe8]),
    ]
    .concat();
    let wanted = vec![text(""), text("grün"), Told::Ping(b"there?".into()), Told::Binary(vec![0xff]), Told::Close];
    check(&bytes, Ok(wanted)).await;
}

/// A character may be cut by the border of two pieces, and a ping may come between them.
#[tokio::test]
async fn a_message_in_pieces_is_one() {
    let (one, other) = "grün".as_bytes().split_at(3);
    let bytes = [
        frame(0x01, one),
        frame(0x89, b""),
        frame(0x00, b""),
        frame(0x80, other),
        frame(0x02, b"a"),
        frame(0x80, b"b"),
        frame(0x81, b"next"),
    ]
    .concat();
    let wanted = vec![Told::Ping(vec![]), text("grün"), Told::Binary(b"ab".into()), text("next")];
    check(&bytes, Ok(wanted)).await;
}

#[tokio::test]
async fn broken_rules_end_the_connection() {
    check(&[0x81, 0x01, b'a'], Err(FrameError::Unmasked)).await;
    check(&frame(0xc1, b"a"), Err(FrameError::Reserved(0xc1))).await;
    check(&frame(0x83, b"a"), Err(FrameError::Reserved(0x83))).await;
    check(&frame(0x09, b"a"), Err(FrameError::Control(1))).await;
    check(&frame(0x89, &[0; 126]), Err(FrameError::Control(126))).await;
    check(&frame(0x80, b"a"), Err(FrameError::OutOfPlace)).await;
    check(&[frame(0x01, b"a"), frame(0x81, b"b")].concat(), Err(FrameError::OutOfPlace)).await;
    check(&frame(0x81, &[0xff]), Err(FrameError::NotUtf8)).await;
    check(&[frame(0x01, &[0xc3]), frame(0x80, b"a")].concat(), Err(FrameError::NotUtf8)).await;
}

#[tokio::test]
async fn lengths_are_bounded() {
    let announced = |bytes: u64| [&[0x81, 0xff][..], &bytes.to_be_bytes(), &[0; 4]].concat();
    let beyond = MAX_FRAME_BYTES as u64 + 1;
    check(&announced(beyond), Err(FrameError::TooLong(beyond))).await;
    check(&announced(u64::MAX), Err(FrameError::TooLong(u64::MAX))).await;
    check(&announced(MAX_FRAME_BYTES as u64), Ok(vec![])).await;
    let piece = frame(0x00, &vec![b'x'; MAX_FRAME_BYTES]);
    let pieces = MAX_MESSAGE_BYTES / MAX_FRAME_BYTES;
    let bytes = [frame(0x01, b"x"), piece.repeat(pieces)].concat();
    let too_long = Err(FrameError::TooLong(MAX_MESSAGE_BYTES as u64 + 1));
    assert_eq!(told(&bytes, bytes.len()).await, too_long);
}

/// The room for a large message is there while it arrives, and not for longer.
#[tokio::test]
async fn a_quiet_connection_holds_little() {
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
    let mut incoming = Incoming::default();
    let large = frame(0x81, &vec![b'x'; 1 << 20]);
    let sending = async {
        tokio::io::AsyncWriteExt::write_all(&mut theirs, &large).await.expect("written");
    };
    let reading = async {
        loop {
            incoming.fill(&mut ours).await.expect("read");
            if let Some(Event::Text { text, .. }) = incoming.next().expect("frames") {
                return text.len();
            }
        }
    };
    let ((), length) = tokio::join!(sending, reading);
    assert_eq!(length, 1 << 20);
    assert!(incoming.next().expect("frames").is_none());
    tokio::select! {
        biased;
        _ = incoming.fill(&mut ours) => panic!("there is nothing"),
        () = std::future::ready(()) => {}
    }
    assert!(incoming.buffer.capacity() <= 2 * BUSY_BYTES && incoming.large.is_none() && incoming.whole.is_empty());
}

proptest! {
    #[test]
    fn frames_arrive_whole_however_they_are_cut(
        texts in prop::collection::vec(prop_oneof![".{0,40}", "[a-z]{100,400}", (0..3_usize).prop_map(|n| "z".repeat(65_535 + n)), (0..9_usize).prop_map(|n| "ä".repeat(100_000 + n))], 0..8),
        length in prop_oneof![1..64_usize, 1000..200_000_usize],
    ) {
        let bytes: Vec<u8> = texts.iter().flat_map(|text| frame(0x81, text.as_bytes())).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let told = runtime.block_on(told(&bytes, length)).expect("frames");
        prop_assert_eq!(told, texts.iter().map(|it| text(it)).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 1..300), length in 1..50_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _ = runtime.block_on(told(&bytes, length));
    }

    #[test]
    fn a_mask_is_taken_off(payload in prop::collection::vec(any::<u8>(), 0..70), mask in any::<[u8; 4]>()) {
        let plain: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let mut payload = payload;
        unmask(&mut payload, mask);
        prop_assert_eq!(payload, plain);
    }
}
