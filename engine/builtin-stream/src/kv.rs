//! The adapter that keeps items in a file of this engine.
//!
//! ```text
//! items   stream, group, item ─► number of the write that made it (8 bytes) + JSON
//! groups  stream, group ─► how many items, and the two names
//! writes  ─► number of the last write
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use engine_builtin::{BuiltinError, Raw, Trace};
use engine_store::{Reading, Store, StoreError, Table, Writing, key};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::adapter::{AdapterError, Deleted, ItemKey, MAX_LIST_BYTES, Ops, Snapshot, Written, list, updated};
use crate::event::{Change, Emitted, Event};
use crate::hub::Hub;
use crate::order::{Entry, Order};

const FILE: &str = "store.redb";

const ITEMS: Table = Table("items");
const GROUPS: Table = Table("groups");
const WRITES: Table = Table("writes");

/// Lists that are read at once.
const READERS: usize = 8;

pub(crate) struct Kv {
    store: Store,
    order: Arc<Order>,
    readers: Semaphore,
}

#[derive(Serialize, Deserialize)]
struct Group {
    stream_name: String,
    group_id: String,
    items: u64,
}

/// An item as it is stored.
struct Row {
    made: u64,
    json: String,
}

impl Row {
    fn bytes(made: u64, json: &str) -> Vec<u8> {
        [&made.to_be_bytes(), json.as_bytes()].concat()
    }

    /// None: nothing of ours.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (made, json) = bytes.split_first_chunk::<8>()?;
        Some(Self { made: u64::from_be_bytes(*made), json: String::from_utf8(json.to_vec()).ok()? })
    }

    fn raw(self) -> Result<Raw, AdapterError> {
        Ok(Raw::from(serde_json::value::RawValue::from_string(self.json)?))
    }
}

impl ItemKey {
    fn bytes(&self) -> Vec<u8> {
        key(&[self.stream_name.as_bytes(), self.group_id.as_bytes(), self.item_id.as_bytes()])
    }

    fn group(&self) -> Vec<u8> {
        key(&[self.stream_name.as_bytes(), self.group_id.as_bytes()])
    }
}

impl Kv {
    pub(crate) fn open(folder: &Path, hub: Arc<Hub>) -> Result<Self, BuiltinError> {
        let store = Store::open(&folder.join(FILE));
        Self::new(store, || format!("could not open the items in {}", folder.display()), hub)
    }

    pub(crate) fn in_memory(hub: Arc<Hub>) -> Result<Self, BuiltinError> {
        warn!("items are kept in memory only: they are gone when the engine ends");
        Self::new(Store::in_memory(), || "could not keep items in memory".to_owned(), hub)
    }

    fn new(store: Result<Store, StoreError>, what: impl Fn() -> String, hub: Arc<Hub>) -> Result<Self, BuiltinError> {
        let store = store.map_err(|error| BuiltinError::failed(what(), error))?;
        Ok(Self { store, order: Order::new(hub), readers: Semaphore::new(READERS) })
    }

    pub(crate) async fn set(&self, key: ItemKey, data: Raw, trace: Trace) -> Result<Written, AdapterError> {
        self.write(key, trace, move |_| Ok((data, None))).await
    }

    pub(crate) async fn update(&self, key: ItemKey, ops: Ops, trace: Trace) -> Result<Written, AdapterError> {
        self.write(key, trace, move |before| updated(ops.ops, before)).await
    }

    /// Stores what `change` makes of the item.
    async fn write(
        &self,
        key: ItemKey,
        trace: Trace,
        change: impl FnOnce(Option<&str>) -> Result<(Raw, Option<Raw>), AdapterError> + Send + 'static,
    ) -> Result<Written, AdapterError> {
        let (ticket, entry) = self.order.ticket();
        let write = move |writing: &mut Writing<'_>| {
            let before = writing.get(ITEMS, &key.bytes())?.as_deref().and_then(Row::parse);
            let (data, errors) = match change(before.as_ref().map(|before| before.json.as_str())) {
                Ok(changed) => changed,
                Err(error) => return Ok(Err(error)),
            };
            let number = next_number(writing)?;
            let made = before.as_ref().map_or(number, |before| before.made);
            writing.put(ITEMS, &key.bytes(), &Row::bytes(made, data.get()))?;
            if before.is_none() {
                count(writing, &key, |items| items + 1)?;
            }
            enter(entry, &key, &Change::written(before.is_some(), &data), number, trace);
            Ok(before.map(Row::raw).transpose().map(|old_value| Written { old_value, new_value: data, errors }))
        };
        let written = self.store.write(write).await?;
        ticket.stored();
        written
    }

    pub(crate) async fn delete(&self, key: ItemKey, trace: Trace) -> Result<Deleted, AdapterError> {
        let (ticket, entry) = self.order.ticket();
        let write = move |writing: &mut Writing<'_>| {
            let Some(row) = writing.remove(ITEMS, &key.bytes())? else { return Ok(Ok(None)) };
            let number = next_number(writing)?;
            count(writing, &key, |items| items.saturating_sub(1))?;
            let before = Row::parse(&row).map(Row::raw).transpose();
            if let Ok(Some(before)) = &before {
                enter(entry, &key, &Change::Delete { data: before }, number, trace);
            }
            Ok(before)
        };
        let deleted = self.store.write(write).await?;
        ticket.stored();
        Ok(Deleted { old_value: deleted? })
    }

    pub(crate) fn get(&self, key: &ItemKey) -> Result<Option<Raw>, AdapterError> {
        let row = self.store.read(|reading| reading.get(ITEMS, &key.bytes()))?;
        row.as_deref().and_then(Row::parse).map(Row::raw).transpose()
    }

    /// A list is in the order in which its items were made.
    pub(crate) async fn snapshot(
        &self,
        stream_name: &str,
        group_id: &str,
        item_id: Option<&str>,
        limit: usize,
    ) -> Result<Snapshot, AdapterError> {
        let mut parts = vec![stream_name.as_bytes(), group_id.as_bytes()];
        parts.extend(item_id.map(str::as_bytes));
        let (prefix, one) = (key(&parts), item_id.is_some());
        let read = move |reading: &Reading| {
            let number = reading.get(WRITES, b"")?.as_deref().map_or(0, number);
            let rows = if one {
                reading.get(ITEMS, &prefix)?.into_iter().collect()
            } else {
                rows(reading, ITEMS, &prefix, limit)?
            };
            Ok((rows, number))
        };
        let (rows, write) = if one { self.store.read(read)? } else { self.reading(read).await? };
        if rows.iter().map(Vec::len).sum::<usize>() > limit {
            return Err(AdapterError::TooMuch);
        }
        let mut rows: Vec<Row> = rows.iter().filter_map(|row| Row::parse(row)).collect();
        rows.sort_by_key(|row| row.made);
        let mut values = rows.into_iter().map(Row::raw).collect::<Result<Vec<_>, _>>()?;
        let data = if one { values.pop().unwrap_or_default() } else { list(&values)? };
        Ok(Snapshot { data, write })
    }

    pub(crate) async fn list_groups(&self, stream_name: &str) -> Result<Vec<String>, AdapterError> {
        let groups = self.groups(key(&[stream_name.as_bytes()])).await?;
        let mut groups: Vec<String> = groups.into_iter().map(|group| group.group_id).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    pub(crate) async fn list_all(&self) -> Result<BTreeMap<String, Vec<String>>, AdapterError> {
        let mut streams: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for group in self.groups(Vec::new()).await? {
            streams.entry(group.stream_name).or_default().push(group.group_id);
        }
        streams.values_mut().for_each(|groups| groups.sort_unstable());
        Ok(streams)
    }

    async fn groups(&self, prefix: Vec<u8>) -> Result<Vec<Group>, AdapterError> {
        let rows = self.reading(move |reading| rows(reading, GROUPS, &prefix, MAX_LIST_BYTES)).await?;
        if rows.iter().map(Vec::len).sum::<usize>() > MAX_LIST_BYTES {
            return Err(AdapterError::TooMuch);
        }
        rows.iter().map(|row| Ok(serde_json::from_slice(row)?)).collect()
    }

    /// Reads much, a few at a time, on a thread where that holds nobody up.
    async fn reading<R: Send + 'static>(
        &self,
        read: impl FnMut(&Reading) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, AdapterError> {
        let _turn = self.readers.acquire().await.map_err(|_| AdapterError::Ended)?;
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.read(read)).await;
        Ok(read.map_err(|_| AdapterError::Ended)??)
    }

    pub(crate) fn emit(&self, emitted: Emitted) {
        self.order.tell(emitted);
    }
}

/// What lies under a prefix, until it is more than `limit` bytes.
fn rows(reading: &Reading, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    reading.visit(table, prefix, |key, row| {
        if !key.starts_with(prefix) || bytes > limit {
            return false;
        }
        bytes += row.len();
        rows.push(row.to_vec());
        true
    })?;
    Ok(rows)
}

fn enter(entry: Entry, key: &ItemKey, change: &Change<'_>, number: u64, trace: Trace) {
    let event = Event::new(&key.stream_name, &key.group_id, Some(&key.item_id), change);
    entry.enter(Emitted { event, write: Some(number), trace });
}

fn next_number(writing: &mut Writing<'_>) -> Result<u64, StoreError> {
    let next = writing.get(WRITES, b"")?.as_deref().map_or(0, number) + 1;
    writing.put(WRITES, b"", &next.to_be_bytes())?;
    Ok(next)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// A group without items is gone.
fn count(writing: &mut Writing<'_>, key: &ItemKey, change: impl Fn(u64) -> u64) -> Result<(), StoreError> {
    let before = writing.get(GROUPS, &key.group())?.and_then(|row| serde_json::from_slice::<Group>(&row).ok());
    let items = change(before.map_or(0, |group| group.items));
    if items == 0 {
        writing.remove(GROUPS, &key.group())?;
        return Ok(());
    }
    let group = Group { stream_name: key.stream_name.clone(), group_id: key.group_id.clone(), items };
    let row = serde_json::to_vec(&group).expect("strings and a number");
    writing.put(GROUPS, &key.group(), &row)?;
    Ok(())
}
