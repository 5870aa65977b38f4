//! A hundred mebibytes through a data channel, from one worker to another and back.

use iii_sdk::helpers::{create_channel, extract_channel_refs};
use iii_sdk::{ChannelReader, ChannelWriter, III, IIIError, StreamChannelRef};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::world::{Outcome, call, connect, register, there};

const PIECES: usize = 1600;

fn piece() -> Vec<u8> {
    (0..=255).cycle().take(65536).collect()
}

async fn send(writer: &ChannelWriter) -> Result<Value, IIIError> {
    let piece = piece();
    for _ in 0..PIECES {
        writer.write(&piece).await?;
    }
    writer.close().await?;
    Ok(Value::Null)
}

async fn digest(reader: &ChannelReader) -> Result<Value, IIIError> {
    let mut sum = Sha256::new();
    let mut bytes = 0;
    while let Some(piece) = reader.next_binary().await? {
        sum.update(&piece);
        bytes += piece.len();
    }
    Ok(json!({ "sha256": format!("{:x}", sum.finalize()), "bytes": bytes }))
}

/// The channel end that came in a payload.
fn end(data: &Value) -> StreamChannelRef {
    extract_channel_refs(data).remove(0).1
}

pub async fn run() -> Outcome {
    let (alice, bob) = (connect("alice"), connect("bob"));
    let at = |iii: &III| iii.address().to_owned();
    let url = at(&bob);
    register(&bob, "bob::take", move |data| {
        let reader = ChannelReader::new(&url, &end(&data));
        async move { digest(&reader).await }
    });
    let url = at(&bob);
    register(&bob, "bob::give", move |data| {
        let writer = ChannelWriter::new(&url, &end(&data));
        async move { send(&writer).await }
    });
    there(&alice, &["bob::take", "bob::give"]).await;

    let whole = Sha256::digest(piece().repeat(PIECES));
    let whole = json!({ "sha256": format!("{whole:x}"), "bytes": PIECES * 65536 });
    let out = create_channel(&alice, Some(64)).await?;
    let taken = call(&alice, "bob::take", json!({ "reader": out.reader_ref }));
    let (taken, sent) = tokio::join!(taken, send(&out.writer));
    sent?;
    assert_eq!(taken?, whole);

    let back = create_channel(&alice, None).await?;
    let given = call(&alice, "bob::give", json!({ "writer": back.writer_ref }));
    let (given, got) = tokio::join!(given, digest(&back.reader));
    given?;
    assert_eq!(got?, whole);
    Ok(())
}
