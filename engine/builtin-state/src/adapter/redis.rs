//! Values in Redis: a hash `state:<scope>`, a field per key, JSON text as its value.

use std::collections::BTreeSet;
use std::time::Duration;

use engine_builtin::{BuiltinError, Raw};
use engine_updates::Op;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, IntoConnectionInfo, ProtocolVersion, RedisError, Script};

use super::{AdapterError, Turns, Updated, Write, Written, array, stored, update};
use crate::functions::Place;
use crate::settings::RedisConfig;

const PREFIX: &str = "state:";
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Others' updates of the same key that one update gives way to.
const MAX_ATTEMPTS: u32 = 1000;

/// Stores ARGV[3] in the field, if that is still what it was: ARGV[1] says whether it was there, ARGV[2] is the value.
const STORE_IF_UNCHANGED: &str = r"
local now = redis.call('HGET', KEYS[1], ARGV[4])
if (ARGV[1] == '1' and now == ARGV[2]) or (ARGV[1] == '0' and not now) then
  redis.call('HSET', KEYS[1], ARGV[4], ARGV[3])
  return 1
end
return 0";

pub(crate) struct Redis {
    /// Connects anew by itself. A command under which the connection broke is not repeated: it may have been done.
    connection: ConnectionManager,
    store_if_unchanged: Script,
    turns: Turns,
}

impl Redis {
    pub(crate) async fn connect(config: &RedisConfig) -> Result<Self, BuiltinError> {
        let failed = |error: RedisError| BuiltinError::failed("could not connect to Redis (`redis_url`)", error);
        let info = config.redis_url.as_str().into_connection_info().map_err(failed)?;
        // The third protocol tells at once when a connection breaks, not only to the next command.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = redis::Client::open(info.set_redis_settings(settings)).map_err(failed)?;
        let patience = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(Some(ANSWER_PATIENCE))
            .set_number_of_retries(3);
        let connection = ConnectionManager::new_with_config(client, patience).await.map_err(failed)?;
        Ok(Self { connection, store_if_unchanged: Script::new(STORE_IF_UNCHANGED), turns: Turns::new() })
    }

    pub(crate) async fn get(&self, place: &Place) -> Result<Option<Raw>, AdapterError> {
        self.field(place).await?.map(stored).transpose()
    }

    async fn field(&self, place: &Place) -> Result<Option<Vec<u8>>, RedisError> {
        self.ask(|mut redis| async move { redis.hget(hash(&place.scope), &place.key).await }).await
    }

    pub(crate) async fn set(&self, write: Write, new: Raw) -> Result<Written, AdapterError> {
        let _turn = self.turns.take(&write.place).await;
        let Place { scope, key } = &*write.place;
        let mut both = redis::pipe();
        both.atomic().hget(hash(scope), key).hset(hash(scope), key, new.get()).ignore();
        let old = self.exchange(&both).await?;
        let slot = write.reserve(old.as_ref().map_or(0, |old| old.get().len()), new.get().len());
        Ok(Written { old, new: Some(new), errors: None, slot })
    }

    pub(crate) async fn delete(&self, write: Write) -> Result<Written, AdapterError> {
        let _turn = self.turns.take(&write.place).await;
        let Place { scope, key } = &*write.place;
        let mut both = redis::pipe();
        both.atomic().hget(hash(scope), key).hdel(hash(scope), key).ignore();
        let old = self.exchange(&both).await?;
        let slot = write.reserve(old.as_ref().map_or(0, |old| old.get().len()), 0);
        Ok(Written { old, new: None, errors: None, slot })
    }

    /// Runs a transaction that answers with the value before.
    async fn exchange(&self, both: &redis::Pipeline) -> Result<Option<Raw>, AdapterError> {
        let (old,): (Option<Vec<u8>>,) =
            self.ask(|mut redis| async move { both.query_async(&mut redis).await }).await?;
        // It is replaced, whatever it was; someone else's text that is no JSON counts as none.
        Ok(old.and_then(|old| stored(old).ok()))
    }

    pub(crate) async fn update(&self, write: Write, ops: Vec<Op>, limit: usize) -> Result<Written, AdapterError> {
        let _turn = self.turns.take(&write.place).await;
        for _ in 0..MAX_ATTEMPTS {
            let before = self.field(&write.place).await?;
            let old = before.clone().map(stored).transpose()?;
            let Updated { new, errors } = update(ops.clone(), old.as_deref(), limit)?;
            if self.store(&write.place, before.as_deref(), new.get()).await? {
                let slot = write.reserve(before.map_or(0, |before| before.len()), new.get().len());
                return Ok(Written { old, new: Some(new), errors, slot });
            }
        }
        Err(AdapterError::Contended { attempts: MAX_ATTEMPTS })
    }

    /// Whether the value was still the one before, and is the new one now.
    async fn store(&self, place: &Place, before: Option<&[u8]>, new: &str) -> Result<bool, RedisError> {
        let mut script = self.store_if_unchanged.key(hash(&place.scope));
        script.arg(i32::from(before.is_some())).arg(before.unwrap_or_default()).arg(new).arg(&place.key);
        let script = &script;
        self.ask(|mut redis| async move { script.invoke_async(&mut redis).await }).await
    }

    /// In the order of Redis, which keeps that of their coming for small hashes only.
    pub(crate) async fn list(&self, scope: &str) -> Result<Raw, AdapterError> {
        let values: Vec<Vec<u8>> = self.ask(|mut redis| async move { redis.hvals(hash(scope)).await }).await?;
        let values = values.into_iter().map(stored).collect::<Result<Vec<_>, _>>()?;
        array(&values.iter().map(|value| value.get()).collect::<Vec<_>>())
    }

    pub(crate) async fn list_groups(&self) -> Result<Vec<String>, AdapterError> {
        let mut groups = BTreeSet::new();
        let mut cursor = 0u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg("state:*").arg("COUNT").arg(1000).arg("TYPE").arg("hash");
            let scan = &scan;
            let (next, names): (u64, Vec<Vec<u8>>) =
                self.ask(|mut redis| async move { scan.query_async(&mut redis).await }).await?;
            let names = names.into_iter().filter_map(|name| String::from_utf8(name).ok());
            groups.extend(names.filter_map(|name| name.strip_prefix(PREFIX).map(str::to_owned)));
            cursor = next;
            if cursor == 0 {
                return Ok(groups.into_iter().collect());
            }
        }
    }

    /// Runs a command; once more when the connection had been refused, for then it was not done.
    async fn ask<R, F: Future<Output = Result<R, RedisError>>>(
        &self,
        command: impl Fn(ConnectionManager) -> F,
    ) -> Result<R, RedisError> {
        match command(self.connection.clone()).await {
            Err(error) if error.is_connection_refusal() => command(self.connection.clone()).await,
            answer => answer,
        }
    }
}

fn hash(scope: &str) -> String {
    format!("{PREFIX}{scope}")
}
