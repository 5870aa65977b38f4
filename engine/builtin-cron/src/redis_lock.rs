//! Locks that several engines share, in Redis.
//!
//! ```text
//! cron_lock:<job>   token of the run that has the lock; expires unless it is renewed
//! cron_tick:<job>   the time that was run last, in ms: an engine whose clock is late does not run it again
//! ```

use std::sync::LazyLock;
use std::time::Duration;

use chrono::{DateTime, Utc};
use redis::Script;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tracing::warn;
use uuid::Uuid;

use crate::lock::LockError;

/// For how long a lock outlives an engine that dies.
const TTL: Duration = Duration::from_secs(30);

/// How long Redis may take to connect or answer.
const PATIENCE: Duration = Duration::from_secs(5);

static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local tick = redis.call('GET', KEYS[2])
         if tick and tonumber(tick) >= tonumber(ARGV[3]) then return 0 end
         if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
         redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
         return 1",
    )
});

static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
         return redis.call('PEXPIRE', KEYS[1], ARGV[2])",
    )
});

static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
         return redis.call('DEL', KEYS[1])",
    )
});

pub(crate) struct RedisLocks {
    connection: ConnectionManager,
    pub(crate) ttl: Duration,
}

impl RedisLocks {
    /// Connects, and does so again whenever the connection is lost.
    pub(crate) async fn connect(url: &str) -> Result<Self, LockError> {
        let failed = |source| LockError { what: "connect", source };
        let client = redis::Client::open(url).map_err(failed)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(2);
        let connection = ConnectionManager::new_with_config(client, config).await.map_err(failed)?;
        Ok(Self { connection, ttl: TTL })
    }

    pub(crate) async fn take(&self, job: &str, due: DateTime<Utc>) -> Result<Option<RedisLock>, LockError> {
        let lock = RedisLock {
            connection: self.connection.clone(),
            key: format!("cron_lock:{job}"),
            token: Uuid::new_v4().to_string(),
            job: job.to_owned(),
            ttl: self.ttl,
        };
        let mut connection = self.connection.clone();
        let taken: bool = TAKE
            .key(&lock.key)
            .key(format!("cron_tick:{job}"))
            .arg(&lock.token)
            .arg(lock.ttl_ms())
            .arg(due.timestamp_millis())
            .invoke_async(&mut connection)
            .await
            .map_err(|source| LockError { what: "take a lock", source })?;
        Ok(taken.then_some(lock))
    }
}

/// If it is dropped instead of released, it expires.
pub(crate) struct RedisLock {
    connection: ConnectionManager,
    key: String,
    token: String,
    job: String,
    ttl: Duration,
}

impl RedisLock {
    pub(crate) async fn held_during<R>(self, run: impl Future<Output = R>) -> R {
        let result = tokio::select! {
            result = run => result,
            never = self.renew() => match never {},
        };
        let mut connection = self.connection.clone();
        let released = RELEASE.key(&self.key).arg(&self.token).invoke_async::<bool>(&mut connection).await;
        if let Err(error) = released {
            warn!(job = self.job, %error, "a cron lock could not be released, it expires");
        }
        result
    }

    async fn renew(&self) -> std::convert::Infallible {
        let mut connection = self.connection.clone();
        let mut lost = false;
        loop {
            tokio::time::sleep(self.ttl / 3).await;
            let renewal = RENEW.key(&self.key).arg(&self.token).arg(self.ttl_ms()).invoke_async(&mut connection).await;
            match renewal {
                Ok(true) => lost = false,
                Ok(false) if !lost => {
                    lost = true;
                    warn!(job = self.job, "a cron lock was lost while its job ran: another engine may run it as well");
                }
                Ok(false) => {}
                Err(error) => warn!(job = self.job, %error, "a cron lock could not be renewed"),
            }
        }
    }

    fn ttl_ms(&self) -> u64 {
        u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX)
    }
}
