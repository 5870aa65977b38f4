//! Dead letters on the broker: a queue can only be read from its oldest message on, so looking means getting them all,
//! and giving them back by closing the channel.

use std::collections::VecDeque;

use futures_util::TryFutureExt;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions};

use crate::broker::{DeadMessageRow, QueueError};
use crate::message::DeadMessage;
use crate::rabbitmq::link::Target;
use crate::rabbitmq::{Shared, encoded, names};

/// Messages that are looked through, at most: the oldest ones.
const MAX_LOOKED_AT: usize = 10_000;

/// Payloads that are held while looking.
const MAX_BYTES: usize = 64 * 1024 * 1024;

impl Shared {
    /// Puts back what was dead when it began.
    pub(super) async fn redrive(&self, name: &str) -> Result<u64, QueueError> {
        let _alone = self.dead.lock().await;
        let (channel, count) = self.open_dead(name).await?;
        let mut redriven = 0;
        for _ in 0..count {
            let Some(got) = self.get(&channel, name).await? else { break };
            self.revive(got).await?;
            redriven += 1;
        }
        Ok(redriven)
    }

    /// Puts one back, or throws it away. False: it is not there.
    pub(super) async fn take_dead(&self, name: &str, id: &str, redrive: bool) -> Result<bool, QueueError> {
        let _alone = self.dead.lock().await;
        let (channel, count) = self.open_dead(name).await?;
        let mut found = None;
        for _ in 0..count.min(MAX_LOOKED_AT) {
            let Some(got) = self.get(&channel, name).await? else { break };
            if decoded(&got).is_some_and(|dead| dead.message.id == id) {
                found = Some(got);
                break;
            }
        }
        let is_found = found.is_some();
        match found {
            Some(got) if redrive => self.revive(got).await?,
            Some(got) => self.ack(got).await?,
            None => {}
        }
        self.give_back(channel).await?;
        Ok(is_found)
    }

    /// Newest first.
    pub(super) async fn dead_messages(
        &self,
        name: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<DeadMessageRow>, QueueError> {
        let _alone = self.dead.lock().await;
        let (channel, count) = self.open_dead(name).await?;
        let mut newest = VecDeque::new();
        let mut bytes = 0;
        for _ in 0..count.min(MAX_LOOKED_AT) {
            let Some(got) = self.get(&channel, name).await? else { break };
            bytes += got.delivery.data.len();
            newest.extend(decoded(&got));
            while newest.len() > offset.saturating_add(limit) || (bytes > MAX_BYTES && newest.len() > 1) {
                let left = newest.pop_front().map_or(0, |dead: DeadMessage| dead.message.data.get().len());
                bytes = bytes.saturating_sub(left);
            }
        }
        self.give_back(channel).await?;
        Ok(newest.into_iter().rev().skip(offset).take(limit).map(DeadMessageRow::from).collect())
    }

    async fn open_dead(&self, name: &str) -> Result<(Channel, usize), QueueError> {
        let connected = self.link.connected().await?;
        let open = async {
            let count = connected.messages(&names::dead(name)).await?;
            Ok((connected.channel().await?, usize::try_from(count).unwrap_or(usize::MAX)))
        };
        open.await.map_err(|error: lapin::Error| self.link.failed(&error))
    }

    async fn get(&self, channel: &Channel, name: &str) -> Result<Option<BasicGetMessage>, QueueError> {
        let got = channel.basic_get(names::dead(name).into(), BasicGetOptions::default());
        got.map_err(|error| self.link.failed(&error)).await
    }

    async fn revive(&self, got: BasicGetMessage) -> Result<(), QueueError> {
        if let Some(mut dead) = decoded(&got) {
            dead.message.attempts = 0;
            dead.message.due_ms = 0;
            self.link.publish(&Target::Queue(dead.queue), &encoded(&dead.message)).await?;
        }
        self.ack(got).await
    }

    async fn ack(&self, got: BasicGetMessage) -> Result<(), QueueError> {
        let acked = got.delivery.acker.ack(BasicAckOptions::default()).await;
        acked.map(|_| ()).map_err(|error| self.link.failed(&error))
    }

    async fn give_back(&self, channel: Channel) -> Result<(), QueueError> {
        channel.close(200, "seen".into()).await.map_err(|error| self.link.failed(&error))
    }
}

fn decoded(got: &BasicGetMessage) -> Option<DeadMessage> {
    serde_json::from_slice(&got.delivery.data).ok()
}
