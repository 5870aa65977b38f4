//! Values in a file of the engine's own, or in memory.
//!
//! ```text
//! values    scope, key ─► JSON text, then 8 bytes: its number, big-endian
//! numbers   "next"     ─► the number of the next key that is new
//! ```

use engine_builtin::{BuiltinError, Raw};
use engine_store::{Store, StoreError, Table, Writing, first_part, key, prefix_end};
use engine_updates::Op;
use tracing::warn;

use super::{AdapterError, MAX_ANSWER_BYTES, Write, Written, array, stored, update};
use crate::functions::Place;
use crate::settings::{KvConfig, StoreMethod};

const VALUES: Table = Table("values");
const NUMBERS: Table = Table("numbers");
const NEXT: &[u8] = b"next";

/// Numbers the keys of all scopes in the order in which they came: a value's place in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Number(u64);

impl Number {
    const BYTES: usize = size_of::<u64>();

    /// Takes the number off the end of what is stored.
    fn split(stored: &[u8]) -> Option<(&[u8], Self)> {
        let (json, number) = stored.split_last_chunk::<{ Self::BYTES }>()?;
        Some((json, Self(u64::from_be_bytes(*number))))
    }

    fn next(writing: &mut Writing<'_>) -> Result<Self, StoreError> {
        let next = writing.get(NUMBERS, NEXT)?.and_then(|bytes| Some(Self::split(&bytes)?.1)).unwrap_or(Self(0));
        writing.put(NUMBERS, NEXT, &(next.0 + 1).to_be_bytes())?;
        Ok(next)
    }
}

pub(crate) struct Kv {
    store: Store,
}

impl Kv {
    pub(crate) fn open(config: &KvConfig) -> Result<Self, BuiltinError> {
        let store = match config.store_method {
            StoreMethod::FileBased => {
                let path = config.folder().join("store.redb");
                Store::open(&path)
                    .map_err(|error| BuiltinError::failed(format!("could not open {}", path.display()), error))?
            }
            StoreMethod::InMemory => {
                warn!("`store_method: in_memory`: all state is lost when the engine ends");
                Store::in_memory().map_err(|error| BuiltinError::failed("could not keep state in memory", error))?
            }
        };
        Ok(Self { store })
    }

    pub(crate) fn get(&self, place: &Place) -> Result<Option<Raw>, AdapterError> {
        let found = self.store.read(|reading| reading.get(VALUES, &row(place)))?;
        found.map(value).transpose()
    }

    pub(crate) async fn set(&self, write: Write, new: Raw) -> Result<Written, AdapterError> {
        let work = move |writing: &mut Writing<'_>| {
            let row = row(&write.place);
            let old = writing.get(VALUES, &row)?;
            put(writing, &row, &new, old.as_deref())?;
            let slot = write.reserve(old.as_ref().map_or(0, Vec::len), new.get().len());
            Ok((old, new, slot))
        };
        let (old, new, slot) = self.store.write(work).await?;
        Ok(Written { old: old.map(value).transpose()?, new: Some(new), errors: None, slot })
    }

    pub(crate) async fn delete(&self, write: Write) -> Result<Written, AdapterError> {
        let work = move |writing: &mut Writing<'_>| {
            let old = writing.remove(VALUES, &row(&write.place))?;
            let slot = write.reserve(old.as_ref().map_or(0, Vec::len), 0);
            Ok((old, slot))
        };
        let (old, slot) = self.store.write(work).await?;
        Ok(Written { old: old.map(value).transpose()?, new: None, errors: None, slot })
    }

    pub(crate) async fn update(&self, write: Write, ops: Vec<Op>, limit: usize) -> Result<Written, AdapterError> {
        let work = move |writing: &mut Writing<'_>| {
            let row = row(&write.place);
            let before = writing.get(VALUES, &row)?;
            // A value that cannot be updated is no failure of the store: nothing is undone for it.
            let updated = before.clone().map(value).transpose().and_then(|old| {
                let updated = update(ops, old.as_deref(), limit)?;
                Ok((old, updated))
            });
            let (old, updated) = match updated {
                Ok(updated) => updated,
                Err(error) => return Ok(Err(error)),
            };
            put(writing, &row, &updated.new, before.as_deref())?;
            let slot = write.reserve(before.map_or(0, |before| before.len()), updated.new.get().len());
            Ok(Ok(Written { old, new: Some(updated.new), errors: updated.errors, slot }))
        };
        self.store.write(work).await?
    }

    pub(crate) async fn list(&self, scope: String) -> Result<Raw, AdapterError> {
        self.reading(move |store| {
            let prefix = key(&[scope.as_bytes()]);
            let end = prefix_end(&prefix);
            let mut bytes = 0;
            let mut rows: Vec<(Number, String)> = Vec::new();
            store.read(|reading| {
                reading.visit(VALUES, &prefix, |key, stored| {
                    if end.as_deref().is_some_and(|end| key >= end) || bytes > MAX_ANSWER_BYTES {
                        return false;
                    }
                    if let Some((json, number)) = Number::split(stored) {
                        bytes += json.len();
                        rows.push((number, String::from_utf8_lossy(json).into_owned()));
                    }
                    true
                })
            })?;
            rows.sort_unstable_by_key(|(number, _)| *number);
            array(&rows.iter().map(|(_, json)| json.as_str()).collect::<Vec<_>>())
        })
        .await
    }

    pub(crate) async fn list_groups(&self) -> Result<Vec<String>, AdapterError> {
        self.reading(|store| {
            let mut groups = Vec::new();
            let mut bytes = 0;
            let mut from = Some(Vec::new());
            while let Some(start) = from.take() {
                let mut scope = None;
                store.read(|reading| {
                    reading.visit(VALUES, &start, |key, _| {
                        scope = first_part(key);
                        false
                    })
                })?;
                if let Some(scope) = scope {
                    from = prefix_end(&key(&[&scope]));
                    // As JSON, at worst: each byte escaped, quotes and a comma.
                    bytes += scope.len() * 6 + 3;
                    if bytes > MAX_ANSWER_BYTES {
                        return Err(AdapterError::TooMuch);
                    }
                    groups.push(String::from_utf8(scope)?);
                }
            }
            Ok(groups)
        })
        .await
    }

    /// Reads much on a thread where that holds nobody up.
    async fn reading<R: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<R, AdapterError> + Send + 'static,
    ) -> Result<R, AdapterError> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || read(&store)).await.unwrap_or(Err(AdapterError::Ended))
    }
}

fn row(place: &Place) -> Vec<u8> {
    key(&[place.scope.as_bytes(), place.key.as_bytes()])
}

/// Stores a value; one that was there before keeps its number.
fn put(writing: &mut Writing<'_>, row: &[u8], new: &Raw, old: Option<&[u8]>) -> Result<(), StoreError> {
    let number = match old.and_then(Number::split) {
        Some((_, number)) => number,
        None => Number::next(writing)?,
    };
    let mut bytes = Vec::with_capacity(new.get().len() + Number::BYTES);
    bytes.extend_from_slice(new.get().as_bytes());
    bytes.extend_from_slice(&number.0.to_be_bytes());
    writing.put(VALUES, row, &bytes)?;
    Ok(())
}

/// The JSON text of what is stored.
fn value(mut bytes: Vec<u8>) -> Result<Raw, AdapterError> {
    bytes.truncate(bytes.len().saturating_sub(Number::BYTES));
    stored(bytes)
}
