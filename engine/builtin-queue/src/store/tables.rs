//! Queues as rows of a store.
//!
//! ```text
//! push ─► READY (queue, seq) ──────────────────────────────► settle: done, nothing is left
//!    │        ▲                                         ├──► DELAYED (queue, due, seq): to be tried again
//!    │        └── next of its group ◄── done, or dead ──┤
//!    └──► WAITING (queue, group, seq): behind another   └──► DEAD (name, order)
//! ```
//! Of a group only the first message is in READY or DELAYED, which is what keeps its order over retries and restarts
//! without anything in memory. GROUPS has a row for each group with such a first message.

use engine_store::{Reading, StoreError, Table, Writing, key};

use serde::{Deserialize, Serialize};

use crate::message::{DeadMessage, Message, QueueId};
use crate::store::topics::Receiver;

const READY: Table = Table("ready");
const DELAYED: Table = Table("delayed");
const WAITING: Table = Table("waiting");
const GROUPS: Table = Table("groups");
/// (queue) → how many messages it has, and its [`QueueId`].
const QUEUES: Table = Table("queues");
/// (name, order) → [`DeadMessage`].
const DEAD: Table = Table("dead");
/// (name, order from the newest on) → (id).
const DEAD_NEWEST: Table = Table("dead_newest");
/// (name, id) → (order).
const DEAD_IDS: Table = Table("dead_ids");
/// (name) → how many.
const DEAD_COUNTS: Table = Table("dead_counts");
/// (topic, function) → [`Remembered`].
const SUBSCRIBERS: Table = Table("subscribers");
const NUMBERS: Table = Table("numbers");
const LAST: &[u8] = b"last";

/// How many rows one write moves at most, and about how many bytes.
const CHUNK_ROWS: u64 = 256;
const CHUNK_BYTES: usize = 16 * 1024 * 1024;

/// Longest list of names that is shown.
const MAX_NAMES: usize = 10_000;

/// A topic and one of its functions.
type Subscribed = (String, Receiver);

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Retry { due_ms: u64 },
    Dead { at_ms: u64, error: String },
}

/// A delivery's end, still to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settlement {
    pub(crate) seq: u64,
    /// As the message has it.
    pub(crate) due_ms: u64,
    pub(crate) group: Option<String>,
    pub(crate) outcome: Outcome,
}

/// Messages that may be delivered now.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) messages: Vec<(u64, Message)>,
    /// When the next one can be.
    pub(crate) next_due_ms: Option<u64>,
    /// There may be more now.
    pub(crate) more: bool,
    /// Everything up to this number that lies in READY is known.
    pub(crate) ready_until: u64,
}

/// What may be loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

pub(crate) fn push(writing: &mut Writing<'_>, queue: &QueueId, message: &Message) -> Result<(), StoreError> {
    let queue_key = queue.key();
    let seq = next_number(writing)?;
    count(writing, queue, 1)?;
    let row = encoded(message);
    if let Some(group) = &message.group {
        let group_key = [queue_key.as_slice(), &key(&[group.as_bytes()])].concat();
        if writing.get(GROUPS, &group_key)?.is_some() {
            writing.put(WAITING, &with_number(&group_key, seq), &row)?;
            return Ok(());
        }
        writing.put(GROUPS, &group_key, b"")?;
    }
    place(writing, &queue_key, seq, message.due_ms, &row)
}

/// Writes how deliveries of one queue ended, in their order.
pub(crate) fn settle(writing: &mut Writing<'_>, queue: &QueueId, settlements: &[Settlement]) -> Result<(), StoreError> {
    let queue_key = queue.key();
    let mut gone = 0;
    for settlement in settlements {
        let Settlement { seq, due_ms, group, outcome } = settlement;
        let Some(row) = take(writing, &queue_key, *seq, *due_ms)? else { continue };
        match outcome {
            Outcome::Done => {}
            Outcome::Retry { due_ms } => {
                let Some(mut message) = decoded::<Message>(&row) else { continue };
                message.attempts = message.attempts.saturating_add(1);
                message.due_ms = *due_ms;
                place(writing, &queue_key, *seq, *due_ms, &encoded(&message))?;
                continue;
            }
            Outcome::Dead { at_ms, error } => {
                if let Some(mut message) = decoded::<Message>(&row) {
                    message.attempts = message.attempts.saturating_add(1);
                    let (queue, error) = (queue.clone(), error.clone());
                    bury(writing, &DeadMessage { queue, error, failed_at_ms: *at_ms, message })?;
                }
            }
        }
        gone += 1;
        if let Some(group) = group {
            release(writing, &queue_key, group)?;
        }
    }
    count(writing, queue, -gone)
}

/// Messages of a queue that may be delivered at `now_ms` and are not `known` yet; what is due again comes first.
/// `groups` are those whose first message is done, and this not yet written: of them, the next one. READY is looked at
/// from `ready_from` on.
pub(crate) fn load(
    reading: &Reading,
    queue: &QueueId,
    known: &dyn Fn(u64) -> bool,
    groups: &[String],
    ready_from: u64,
    now_ms: u64,
    room: Room,
) -> Result<Loaded, StoreError> {
    let queue_key = queue.key();
    let mut loaded = Loaded { ready_until: ready_from, ..Loaded::default() };
    let mut bytes = 0;
    let mut add = |loaded: &mut Loaded, seq: u64, row: &[u8]| {
        // The first one is taken whatever its size.
        if loaded.messages.len() >= room.messages || (bytes + row.len() > room.bytes && !loaded.messages.is_empty()) {
            loaded.more = true;
            return false;
        }
        let Some(message) = decoded::<Message>(row) else { return true };
        bytes += message.bytes();
        loaded.messages.push((seq, message));
        true
    };
    reading.visit(DELAYED, &queue_key, |key, row| {
        let Some([due, seq]) = numbers_behind::<2>(&queue_key, key) else { return false };
        if due > now_ms {
            loaded.next_due_ms = Some(due);
            return false;
        }
        known(seq) || add(&mut loaded, seq, row)
    })?;
    for group in groups {
        let group_key = [queue_key.as_slice(), &key(&[group.as_bytes()])].concat();
        reading.visit(WAITING, &group_key, |key, row| {
            let Some([seq]) = numbers_behind::<1>(&group_key, key) else { return false };
            // One with a time of its own goes the way of the others: it is written first.
            let next = !known(seq);
            if next && decoded::<Message>(row).is_some_and(|message| message.due_ms == 0) {
                add(&mut loaded, seq, row);
            }
            !next
        })?;
    }
    reading.visit(READY, &with_number(&queue_key, ready_from), |key, row| {
        let Some([seq]) = numbers_behind::<1>(&queue_key, key) else { return false };
        let taken = known(seq) || add(&mut loaded, seq, row);
        if taken {
            loaded.ready_until = seq;
        }
        taken
    })?;
    Ok(loaded)
}

/// Moves what was held for a topic to its new subscriber's queue, a chunk at a time. False: nothing is left.
pub(crate) fn adopt(
    writing: &mut Writing<'_>,
    held: &QueueId,
    queue: &QueueId,
    prepare: impl Fn(&mut Message),
) -> Result<bool, StoreError> {
    let held_key = held.key();
    let (mut moved, mut bytes) = (0, 0);
    while u64::try_from(moved).unwrap_or_default() < CHUNK_ROWS && bytes < CHUNK_BYTES {
        let Some((row_key, row)) = writing.scan(READY, &held_key, 1)?.pop() else { break };
        writing.remove(READY, &row_key)?;
        bytes += row.len();
        if let Some(mut message) = decoded::<Message>(&row) {
            prepare(&mut message);
            push(writing, queue, &message)?;
        }
        moved += 1;
    }
    count(writing, held, -moved)?;
    Ok(moved > 0)
}

/// How many messages a queue or topic has for all its functions, those in flight included.
pub(crate) fn depth(reading: &Reading, name: &str) -> Result<u64, StoreError> {
    let mut rows = reading.scan(QUEUES, &key(&[b"s", name.as_bytes()]), MAX_NAMES)?;
    for queue in [QueueId::Named(name.to_owned()), QueueId::Held(name.to_owned())] {
        rows.extend(reading.get(QUEUES, &queue.key())?.map(|row| (Vec::new(), row)));
    }
    Ok(rows.iter().map(|(_, row)| split_count(row).0).sum())
}

/// Queues with messages.
pub(crate) fn queues(reading: &Reading) -> Result<Vec<(QueueId, u64)>, StoreError> {
    let rows = reading.scan(QUEUES, b"", MAX_NAMES)?;
    let counts = rows.iter().map(|(_, row)| split_count(row));
    Ok(counts.filter_map(|(count, id)| Some((decoded(id)?, count))).collect())
}

/// A function that subscribes to a topic, or did.
#[derive(Serialize, Deserialize)]
struct Remembered {
    topic: String,
    receiver: Receiver,
    /// When it was bound, at least; 0 where nobody knows.
    #[serde(default)]
    seen_ms: u64,
}

pub(crate) fn remember_subscriber(
    writing: &mut Writing<'_>,
    topic: &str,
    receiver: &Receiver,
    now_ms: u64,
) -> Result<(), StoreError> {
    let row_key = key(&[topic.as_bytes(), receiver.function_id.as_bytes()]);
    let row = Remembered { topic: topic.to_owned(), receiver: receiver.clone(), seen_ms: now_ms };
    writing.put(SUBSCRIBERS, &row_key, &encoded(&row)).map(|_| ())
}

pub(crate) fn forget_subscriber(writing: &mut Writing<'_>, topic: &str, function_id: &str) -> Result<(), StoreError> {
    writing.remove(SUBSCRIBERS, &key(&[topic.as_bytes(), function_id.as_bytes()])).map(|_| ())
}

/// Topic and function of all that were remembered since `oldest_ms`, and of those that were before.
pub(crate) fn subscribers(reading: &Reading, oldest_ms: u64) -> Result<(Vec<Subscribed>, Vec<Subscribed>), StoreError> {
    let rows = reading.scan(SUBSCRIBERS, b"", MAX_NAMES)?;
    let rows = rows.iter().filter_map(|(_, row)| decoded::<Remembered>(row));
    let (recent, old): (Vec<_>, Vec<_>) = rows.partition(|row| row.seen_ms == 0 || row.seen_ms >= oldest_ms);
    let names = |rows: Vec<Remembered>| rows.into_iter().map(|row| (row.topic, row.receiver)).collect();
    Ok((names(recent), names(old)))
}

/// The newest dead message's order; what is redriven afterwards ends there.
pub(crate) fn newest_dead(reading: &Reading, name: &str) -> Result<Option<u64>, StoreError> {
    let name_key = key(&[name.as_bytes()]);
    let newest = reading.scan(DEAD_NEWEST, &name_key, 1)?;
    Ok(newest.first().and_then(|(key, _)| numbers_behind::<1>(&name_key, key)).map(|[order]| !order))
}

/// Puts dead messages back, oldest first, up to `until`. Returns the queues they went to; none when all are.
pub(crate) fn redrive(writing: &mut Writing<'_>, name: &str, until: u64) -> Result<Vec<QueueId>, StoreError> {
    let name_key = key(&[name.as_bytes()]);
    let (mut queues, mut bytes) = (Vec::new(), 0);
    while u64::try_from(queues.len()).unwrap_or_default() < CHUNK_ROWS && bytes < CHUNK_BYTES {
        let Some((row_key, row)) = writing.scan(DEAD, &name_key, 1)?.pop() else { break };
        match numbers_behind::<1>(&name_key, &row_key) {
            Some([order]) if order <= until => queues.extend(unbury(writing, name, order, &row)?),
            _ => break,
        }
        bytes += row.len();
    }
    Ok(queues)
}

/// The queue it went back to; `None`: no such dead message.
pub(crate) fn redrive_message(writing: &mut Writing<'_>, name: &str, id: &str) -> Result<Option<QueueId>, StoreError> {
    let Some((order, row)) = find_dead(writing, name, id)? else { return Ok(None) };
    unbury(writing, name, order, &row)
}

/// False: no such dead message.
pub(crate) fn discard_message(writing: &mut Writing<'_>, name: &str, id: &str) -> Result<bool, StoreError> {
    let Some((order, row)) = find_dead(writing, name, id)? else { return Ok(false) };
    exhume(writing, name, order, &row).map(|_| true)
}

/// Names with dead messages, and how many.
pub(crate) fn dead_counts(reading: &Reading) -> Result<Vec<(String, u64)>, StoreError> {
    let rows = reading.scan(DEAD_COUNTS, b"", MAX_NAMES)?;
    let names = rows.iter().map(|(_, row)| split_count(row));
    Ok(names.map(|(count, name)| (String::from_utf8_lossy(name).into_owned(), count)).collect())
}

pub(crate) fn dead_count(reading: &Reading, name: &str) -> Result<u64, StoreError> {
    Ok(reading.get(DEAD_COUNTS, &key(&[name.as_bytes()]))?.as_deref().map_or(0, |row| split_count(row).0))
}

/// Newest first; less than `limit` when they are many bytes.
pub(crate) fn dead_messages(
    reading: &Reading,
    name: &str,
    offset: usize,
    limit: usize,
) -> Result<Vec<DeadMessage>, StoreError> {
    let name_key = key(&[name.as_bytes()]);
    let (mut orders, mut seen) = (Vec::new(), 0);
    reading.visit(DEAD_NEWEST, &name_key, |key, _| {
        let Some([order]) = numbers_behind::<1>(&name_key, key) else { return false };
        if seen >= offset && orders.len() < limit {
            orders.push(!order);
        }
        seen += 1;
        orders.len() < limit
    })?;
    let (mut messages, mut bytes) = (Vec::new(), 0);
    for order in orders {
        let Some(row) = reading.get(DEAD, &with_number(&name_key, order))? else { continue };
        bytes += row.len();
        if bytes > CHUNK_BYTES && !messages.is_empty() {
            break;
        }
        messages.extend(decoded(&row));
    }
    Ok(messages)
}

/// The next of a group takes the place of the one that has left.
fn release(writing: &mut Writing<'_>, queue_key: &[u8], group: &str) -> Result<(), StoreError> {
    let group_key = [queue_key, &key(&[group.as_bytes()])].concat();
    let Some((row_key, row)) = writing.scan(WAITING, &group_key, 1)?.pop() else {
        return writing.remove(GROUPS, &group_key).map(|_| ());
    };
    writing.remove(WAITING, &row_key)?;
    let Some([seq]) = numbers_behind::<1>(&group_key, &row_key) else { return Ok(()) };
    let due_ms = decoded::<Message>(&row).map_or(0, |message| message.due_ms);
    place(writing, queue_key, seq, due_ms, &row)
}

fn place(writing: &mut Writing<'_>, queue_key: &[u8], seq: u64, due_ms: u64, row: &[u8]) -> Result<(), StoreError> {
    let (table, row_key) = place_of(queue_key, seq, due_ms);
    writing.put(table, &row_key, row).map(|_| ())
}

fn take(writing: &mut Writing<'_>, queue_key: &[u8], seq: u64, due_ms: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let (table, row_key) = place_of(queue_key, seq, due_ms);
    writing.remove(table, &row_key)
}

/// Where a message with this time lies.
fn place_of(queue_key: &[u8], seq: u64, due_ms: u64) -> (Table, Vec<u8>) {
    match due_ms {
        0 => (READY, with_number(queue_key, seq)),
        due_ms => (DELAYED, with_number(&with_number(queue_key, due_ms), seq)),
    }
}

fn bury(writing: &mut Writing<'_>, dead: &DeadMessage) -> Result<(), StoreError> {
    let name = dead.queue.name();
    let name_key = key(&[name.as_bytes()]);
    let order = next_number(writing)?;
    writing.put(DEAD, &with_number(&name_key, order), &encoded(dead))?;
    writing.put(DEAD_NEWEST, &with_number(&name_key, !order), dead.message.id.as_bytes())?;
    writing.put(DEAD_IDS, &key(&[name.as_bytes(), dead.message.id.as_bytes()]), &order.to_be_bytes())?;
    add_to(writing, DEAD_COUNTS, &name_key, name.as_bytes(), 1)
}

/// Back into its queue, as if it had never been tried.
fn unbury(writing: &mut Writing<'_>, name: &str, order: u64, row: &[u8]) -> Result<Option<QueueId>, StoreError> {
    let Some(DeadMessage { queue, mut message, .. }) = exhume(writing, name, order, row)? else { return Ok(None) };
    message.attempts = 0;
    message.due_ms = 0;
    push(writing, &queue, &message)?;
    Ok(Some(queue))
}

fn exhume(writing: &mut Writing<'_>, name: &str, order: u64, row: &[u8]) -> Result<Option<DeadMessage>, StoreError> {
    let dead: Option<DeadMessage> = decoded(row);
    let name_key = key(&[name.as_bytes()]);
    writing.remove(DEAD, &with_number(&name_key, order))?;
    writing.remove(DEAD_NEWEST, &with_number(&name_key, !order))?;
    if let Some(dead) = &dead {
        writing.remove(DEAD_IDS, &key(&[name.as_bytes(), dead.message.id.as_bytes()]))?;
    }
    add_to(writing, DEAD_COUNTS, &name_key, name.as_bytes(), -1)?;
    Ok(dead)
}

fn find_dead(writing: &mut Writing<'_>, name: &str, id: &str) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
    let order = writing.get(DEAD_IDS, &key(&[name.as_bytes(), id.as_bytes()]))?;
    let Some(order) = order.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes) else { return Ok(None) };
    let row = writing.get(DEAD, &with_number(&key(&[name.as_bytes()]), order))?;
    Ok(row.map(|row| (order, row)))
}

fn count(writing: &mut Writing<'_>, queue: &QueueId, by: i64) -> Result<(), StoreError> {
    if by == 0 {
        return Ok(());
    }
    add_to(writing, QUEUES, &queue.key(), &encoded(queue), by)
}

/// A row that counts, and ends with `about`; it goes when it comes to nothing.
fn add_to(writing: &mut Writing<'_>, table: Table, row_key: &[u8], about: &[u8], by: i64) -> Result<(), StoreError> {
    let before = writing.get(table, row_key)?.as_deref().map_or(0, |row| split_count(row).0);
    let now = before.saturating_add_signed(by);
    if now == 0 {
        return writing.remove(table, row_key).map(|_| ());
    }
    writing.put(table, row_key, &[&now.to_be_bytes(), about].concat()).map(|_| ())
}

fn split_count(row: &[u8]) -> (u64, &[u8]) {
    row.split_first_chunk().map_or((0, row), |(count, about)| (u64::from_be_bytes(*count), about))
}

/// Numbers are given once, in growing order, over restarts too.
fn next_number(writing: &mut Writing<'_>) -> Result<u64, StoreError> {
    let last = writing.get(NUMBERS, LAST)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
    writing.put(NUMBERS, LAST, &(last + 1).to_be_bytes())?;
    Ok(last + 1)
}

fn with_number(prefix: &[u8], number: u64) -> Vec<u8> {
    [prefix, &number.to_be_bytes()].concat()
}

/// `None`: the key belongs to somebody else.
fn numbers_behind<const N: usize>(prefix: &[u8], key: &[u8]) -> Option<[u64; N]> {
    let rest = key.strip_prefix(prefix)?;
    let mut numbers = [0; N];
    let (chunks, []) = rest.as_chunks::<8>() else { return None };
    if chunks.len() != N {
        return None;
    }
    for (number, chunk) in numbers.iter_mut().zip(chunks) {
        *number = u64::from_be_bytes(*chunk);
    }
    Some(numbers)
}

fn encoded(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("rows are strings and numbers, which JSON can say")
}

/// `None`: the row was not written by this version. It is left alone or dropped, and told.
fn decoded<T: serde::de::DeserializeOwned>(row: &[u8]) -> Option<T> {
    serde_json::from_slice(row).inspect_err(|error| tracing::error!(%error, "a row of the queues cannot be read")).ok()
}

#[cfg(test)]
mod tests {
    use engine_store::Store;

    use super::*;
    use crate::delivery::Order;

    #[tokio::test]
    async fn subscribers_of_long_ago_are_told_from_the_others() {
        let store = Store::in_memory().expect("a store");
        let written = store.write(|writing| {
            for (function_id, seen_ms) in [("unknown", 0), ("old", 99), ("recent", 100)] {
                let receiver = Receiver { function_id: function_id.to_owned(), order: Order::Standard, delay_ms: 0 };
                remember_subscriber(writing, "t", &receiver, seen_ms)?;
            }
            Ok(())
        });
        written.await.expect("written");
        let (recent, old) = store.read(|reading| subscribers(reading, 100)).expect("read");
        let names = |all: Vec<Subscribed>| all.into_iter().map(|(_, it)| it.function_id).collect::<Vec<_>>();
        assert_eq!((names(recent), names(old)), (vec!["recent".into(), "unknown".into()], vec!["old".into()]));
    }
}
