//! Values of another engine, through its `state::` functions.

use std::time::Duration;

use engine_builtin::Raw;
use engine_client::{Client, ClientConfig};
use engine_updates::Op;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{AdapterError, Turns, Write, Written};
use crate::NAME;
use crate::functions::{
    DELETE, GET, Groups, LIST, LIST_GROUPS, ListRequest, Place, SET, SetRequest, UPDATE, UpdateRequest,
};
use crate::settings::BridgeConfig;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the other engine's writes answer.
#[derive(Deserialize)]
struct Answer {
    old_value: Option<Raw>,
    new_value: Raw,
    #[serde(default)]
    errors: Option<Raw>,
}

pub(crate) struct Bridge {
    client: Client,
    turns: Turns,
}

impl Bridge {
    /// Connects in the background: calls wait for it.
    pub(crate) fn connect(config: &BridgeConfig) -> Self {
        let client = Client::connect(ClientConfig {
            url: config.bridge_url.clone(),
            name: NAME.into(),
            description: Some("Keeps its state here".into()),
        });
        Self { client, turns: Turns::new() }
    }

    pub(crate) async fn get(&self, place: &Place) -> Result<Option<Raw>, AdapterError> {
        Ok(self.client.call(GET, place, PATIENCE).await?)
    }

    pub(crate) async fn set(&self, write: Write, value: Raw) -> Result<Written, AdapterError> {
        let Place { scope, key } = (*write.place).clone();
        self.write(SET, &SetRequest { scope, key, value }, write).await
    }

    pub(crate) async fn update(&self, write: Write, ops: Vec<Op>) -> Result<Written, AdapterError> {
        let Place { scope, key } = (*write.place).clone();
        self.write(UPDATE, &UpdateRequest { scope, key, ops }, write).await
    }

    async fn write(
        &self,
        function_id: &'static str,
        request: &(impl Serialize + Sync),
        write: Write,
    ) -> Result<Written, AdapterError> {
        let _turn = self.turns.take(&write.place).await;
        let Answer { old_value: old, new_value: new, errors } = self.ask(function_id, request).await?;
        let slot = write.reserve(old.as_ref().map_or(0, |old| old.get().len()), new.get().len());
        Ok(Written { old, new: Some(new), errors, slot })
    }

    pub(crate) async fn delete(&self, write: Write) -> Result<Written, AdapterError> {
        let _turn = self.turns.take(&write.place).await;
        let old = self.client.call(DELETE, &*write.place, PATIENCE).await?;
        let slot = write.reserve(old.as_ref().map_or(0, |old| old.get().len()), 0);
        Ok(Written { old, new: None, errors: None, slot })
    }

    pub(crate) async fn list(&self, scope: String) -> Result<Raw, AdapterError> {
        self.ask(LIST, &ListRequest { scope }).await
    }

    pub(crate) async fn list_groups(&self) -> Result<Vec<String>, AdapterError> {
        Ok(self.ask::<Groups>(LIST_GROUPS, &json!({})).await?.groups)
    }

    async fn ask<R: DeserializeOwned>(
        &self,
        function_id: &'static str,
        request: &(impl Serialize + Sync),
    ) -> Result<R, AdapterError> {
        let answer = self.client.call(function_id, request, PATIENCE).await?;
        let text = answer.as_ref().map_or("null", |answer| answer.get());
        serde_json::from_str(text).map_err(|source| AdapterError::Answer { function_id, source })
    }
}
