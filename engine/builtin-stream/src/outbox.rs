//! What waits for one subscriber: bounded, the oldest is lost first.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// Bytes that wait for one subscriber. Their text is shared with other subscribers, and counted for each.
pub(crate) const MAX_BYTES: usize = 8 * 1024 * 1024;

/// One text for a subscriber.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) text: Utf8Bytes,
    /// The number of its write, if it has one.
    pub(crate) write: Option<u64>,
    /// Whether it may not be lost: there is one of these at a time.
    kept: bool,
    /// What it takes of a budget until it is sent.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// Letters in order.
#[derive(Debug)]
pub(crate) struct Letters {
    letters: VecDeque<Letter>,
    bytes: usize,
    limit: usize,
}

impl Letters {
    pub(crate) fn new(limit: usize) -> Self {
        Self { letters: VecDeque::new(), bytes: 0, limit }
    }

    /// Makes room by losing the oldest; one that is larger than all the room is alone in it.
    pub(crate) fn push(&mut self, text: Utf8Bytes, write: Option<u64>) {
        while self.letters.len() >= self.limit || self.bytes + text.len() > MAX_BYTES {
            let Some(oldest) = self.letters.iter().position(|letter| !letter.kept) else { break };
            if let Some(lost) = self.letters.remove(oldest) {
                self.bytes -= lost.text.len();
            }
        }
        self.add(Letter { text, write, kept: false, room: None });
    }

    fn add(&mut self, letter: Letter) {
        self.bytes += letter.text.len();
        self.letters.push_back(letter);
    }

    pub(crate) fn pop(&mut self) -> Option<Letter> {
        let letter = self.letters.pop_front()?;
        self.bytes -= letter.text.len();
        Some(letter)
    }
}

/// The letters of one connection. Whoever fills it never waits, except for those that are kept.
#[derive(Debug)]
pub(crate) struct Outbox {
    letters: Mutex<Letters>,
    filled: Notify,
    kept_taken: Notify,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { letters: Mutex::new(Letters::new(limit)), filled: Notify::new(), kept_taken: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, text: Utf8Bytes, write: Option<u64>) {
        self.lock().push(text, write);
        self.filled.notify_one();
    }

    /// Puts in one that is not lost. Only after [`Outbox::room_to_keep`].
    pub(crate) fn keep(&self, text: Utf8Bytes, room: Option<OwnedSemaphorePermit>) {
        self.lock().add(Letter { text, write: None, kept: true, room });
        self.filled.notify_one();
    }

    /// Waits until the one that was kept before is taken. For one caller at a time.
    pub(crate) async fn room_to_keep(&self) {
        while self.lock().letters.iter().any(|letter| letter.kept) {
            self.kept_taken.notified().await;
        }
    }

    /// The next letter. For one caller at a time.
    pub(crate) async fn next(&self) -> Letter {
        loop {
            if let Some(letter) = self.lock().pop() {
                if letter.kept {
                    self.kept_taken.notify_one();
                }
                return letter;
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(letters: &mut Letters) -> Vec<String> {
        std::iter::from_fn(|| letters.pop()).map(|letter| letter.text.to_string()).collect()
    }

    #[test]
    fn the_oldest_is_lost_first_and_what_is_kept_never() {
        let mut letters = Letters::new(3);
        letters.push("a".into(), None);
        letters.add(Letter { text: "sync".into(), write: None, kept: true, room: None });
        for text in ["b", "c", "d"] {
            letters.push(text.into(), None);
        }
        assert_eq!(texts(&mut letters), ["sync", "c", "d"]);
        assert_eq!(letters.bytes, 0);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut letters = Letters::new(1_000_000);
        let third = "x".repeat(MAX_BYTES / 3);
        for _ in 0..10 {
            letters.push(third.clone().into(), None);
            assert!(letters.bytes <= MAX_BYTES);
        }
        letters.push("y".repeat(2 * MAX_BYTES).into(), None);
        assert_eq!(letters.letters.len(), 1);
    }

    #[tokio::test]
    async fn a_second_letter_that_is_kept_waits_for_the_first_to_be_taken() {
        let outbox = Outbox::new(1);
        outbox.room_to_keep().await;
        outbox.keep("one".into(), None);
        let writing = async {
            outbox.room_to_keep().await;
            outbox.keep("two".into(), None);
        };
        let reading = async { [outbox.next().await.text, outbox.next().await.text] };
        let ((), read) = tokio::join!(writing, reading);
        assert_eq!(read.map(|text| text.to_string()), ["one", "two"]);
    }
}
