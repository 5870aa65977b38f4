//! Target `frames`: the bytes of a connection after its handshake.

use futures_util::FutureExt;

use crate::bytes::Bytes;
use crate::features::Features;

/// The engine's own, which nobody else is to use.
#[expect(dead_code, reason = "it also writes frames")]
#[path = "../../../engine/engine/src/frames.rs"]
mod engine;

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Close,
}

/// However the bytes are cut on their way, they tell the same, and end with the same error or none.
pub fn frames(input: &[u8], features: &mut Features) {
    let mut bytes = Bytes(input);
    let piece = 1 + bytes.below(64);
    let whole = told(bytes.0, bytes.0.len().max(1));
    assert_eq!(told(bytes.0, piece), whole, "in pieces of {piece}");
    let (told, error) = whole;
    features.note(error.map(|error| std::mem::discriminant(&error)));
    for pair in told.windows(2) {
        features.note((std::mem::discriminant(&pair[0]), std::mem::discriminant(&pair[1])));
    }
    features.note(told.len().min(8));
    for told in told {
        let length = match told {
            Told::Text(text) => text.len(),
            Told::Binary(bytes) | Told::Ping(bytes) => bytes.len(),
            Told::Close => 0,
        };
        features.note(("length", length.checked_ilog2()));
    }
}

fn told(bytes: &[u8], piece: usize) -> (Vec<Told>, Option<engine::FrameError>) {
    let (mut incoming, mut told) = (engine::Incoming::default(), Vec::new());
    for mut piece in bytes.chunks(piece) {
        while !piece.is_empty() {
            incoming.fill(&mut piece).now_or_never().expect("bytes are at hand").expect("memory can be read");
            loop {
                match incoming.next() {
                    Ok(None) => break,
                    Ok(Some(engine::Event::Text { text, .. })) => told.push(Told::Text(text.to_owned())),
                    Ok(Some(engine::Event::Binary(bytes))) => told.push(Told::Binary(bytes.to_owned())),
                    Ok(Some(engine::Event::Ping(bytes))) => told.push(Told::Ping(bytes.to_owned())),
                    Ok(Some(engine::Event::Close)) => told.push(Told::Close),
                    Err(error) => return (told, Some(error)),
                }
            }
        }
    }
    (told, None)
}
