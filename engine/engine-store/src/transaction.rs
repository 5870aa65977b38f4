//! What can be done inside a read or a write.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};

use crate::key::prefix_end;
use crate::store::StoreError;

/// Names a table of a store; it need not be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Table(pub &'static str);

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Opened = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

impl Table {
    fn definition(self) -> Definition {
        TableDefinition::new(self.0)
    }
}

/// A pair of key and value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// A consistent view of what is stored.
pub struct Reading {
    transaction: ReadTransaction,
}

impl Reading {
    pub(crate) fn new(transaction: ReadTransaction) -> Self {
        Self { transaction }
    }

    fn open(&self, table: Table) -> Result<Option<Opened>, StoreError> {
        match self.transaction.open_table(table.definition()) {
            Ok(open) => Ok(Some(open)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(StoreError::new("open a table", error)),
        }
    }

    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(open) = self.open(table)? else { return Ok(None) };
        get(&open, key)
    }

    /// All rows whose key begins with `prefix`, at most `limit`, in order of their keys.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn scan(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let Some(open) = self.open(table)? else { return Ok(Vec::new()) };
        scan(&open, prefix, limit)
    }

    /// Rows from key `from` on (included), in order, until `visit` returns false.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn visit(&self, table: Table, from: &[u8], visit: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let Some(open) = self.open(table)? else { return Ok(()) };
        walk(&open, from, visit)
    }
}

/// The changes of one write. They are seen by its own reads, and by the writes after it.
pub struct Writing<'a> {
    transaction: &'a WriteTransaction,
    tables: HashMap<Table, redb::Table<'a, &'static [u8], &'static [u8]>>,
}

impl<'a> Writing<'a> {
    pub(crate) fn new(transaction: &'a WriteTransaction) -> Self {
        Self { transaction, tables: HashMap::new() }
    }

    fn open(&mut self, table: Table) -> Result<&mut redb::Table<'a, &'static [u8], &'static [u8]>, StoreError> {
        match self.tables.entry(table) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let open = self.transaction.open_table(table.definition());
                Ok(place.insert(open.map_err(|error| StoreError::new("open a table", error))?))
            }
        }
    }

    /// # Errors
    /// The file cannot be read. Pass it on: the whole write is then undone.
    pub fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(self.open(table)?, key)
    }

    /// # Errors
    /// As [`Writing::get`].
    pub fn scan(&mut self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        scan(self.open(table)?, prefix, limit)
    }

    /// Stores a value and returns the one before.
    ///
    /// # Errors
    /// As [`Writing::get`].
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let before = self.open(table)?.insert(key, value).map_err(|error| StoreError::new("write", error))?;
        Ok(before.map(|before| before.value().to_vec()))
    }

    /// Removes a value and returns it.
    ///
    /// # Errors
    /// As [`Writing::get`].
    pub fn remove(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let before = self.open(table)?.remove(key).map_err(|error| StoreError::new("write", error))?;
        Ok(before.map(|before| before.value().to_vec()))
    }
}

fn get(table: &impl ReadableTable<&'static [u8], &'static [u8]>, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let value = table.get(key).map_err(|error| StoreError::new("read", error))?;
    Ok(value.map(|value| value.value().to_vec()))
}

fn scan(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    limit: usize,
) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    let end = prefix_end(prefix);
    walk(table, prefix, |key, value| {
        let inside = rows.len() < limit && end.as_deref().is_none_or(|end| key < end);
        if inside {
            rows.push((key.to_vec(), value.to_vec()));
        }
        inside
    })?;
    Ok(rows)
}

fn walk(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    from: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), StoreError> {
    let bounds = (Bound::Included(from), Bound::Unbounded);
    let rows = table.range::<&[u8]>(bounds).map_err(|error| StoreError::new("read", error))?;
    for row in rows {
        let (key, value) = row.map_err(|error| StoreError::new("read", error))?;
        if !visit(key.value(), value.value()) {
            break;
        }
    }
    Ok(())
}
