//! Standard input, read beside everything else.

use std::io::Read;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Read at once.
const CHUNK_BYTES: usize = 32 * 1024;

/// Piece by piece until its end, by a thread of its own: such a read cannot be cut short.
pub(crate) fn read() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}
