//! A trigger type of our own: bound before its provider came, handed to the next one, refused by it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use iii_sdk::{III, IIIError, RegisterTriggerType, TriggerConfig, TriggerHandler};
use serde_json::json;

use crate::world::{Inbox, Outcome, bind, call, connect, ids, there, until};

const TYPE: &str = "mailbox::received";

/// A provider's side of the trigger type.
#[derive(Clone, Default)]
struct Mailbox {
    bound: Arc<Mutex<Vec<TriggerConfig>>>,
    refused: Arc<Mutex<Vec<String>>>,
    unbound: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl TriggerHandler for Mailbox {
    async fn register_trigger(&self, binding: TriggerConfig) -> Result<(), IIIError> {
        if binding.config["address"] == "refused@example.org" {
            self.refused.lock().expect("nobody panics with it").push(binding.id);
            return Err(IIIError::Handler("no such mailbox".to_owned()));
        }
        self.bound.lock().expect("nobody panics with it").push(binding);
        Ok(())
    }

    async fn unregister_trigger(&self, binding: TriggerConfig) -> Result<(), IIIError> {
        self.unbound.lock().expect("nobody panics with it").push(binding.id);
        Ok(())
    }
}

impl Mailbox {
    fn provided_by(iii: &III) -> Self {
        let mailbox = Self::default();
        iii.register_trigger_type(RegisterTriggerType::new(TYPE, "Fires for each incoming mail", mailbox.clone()));
        mailbox
    }

    async fn first_binding(&self) -> TriggerConfig {
        until("a binding", async || self.bound.lock().expect("nobody panics with it").first().cloned()).await
    }
}

pub async fn run() -> Outcome {
    let support = connect("support");
    let opened = Inbox::registered(&support, "support::open-ticket");
    there(&support, &["support::open-ticket"]).await;
    let trigger = bind(&support, TYPE, "support::open-ticket", json!({ "address": "help@example.org" }))?;

    let first = connect("first-provider");
    let binding = Mailbox::provided_by(&first).first_binding().await;
    assert_eq!(binding.config, json!({ "address": "help@example.org" }));
    assert_eq!(binding.function_id, "support::open-ticket");
    call(&first, &binding.function_id, json!({ "subject": "it is broken" })).await?;
    assert_eq!(opened.wait(1).await[0]["subject"], "it is broken");

    first.shutdown_async().await;
    let second = connect("second-provider");
    let late = Mailbox::provided_by(&second);
    assert_eq!(late.first_binding().await.id, binding.id);

    bind(&support, TYPE, "support::open-ticket", json!({ "address": "refused@example.org" }))?;
    let refusals = async || late.refused.lock().expect("nobody panics with it").first().cloned();
    until("the refusal", refusals).await;
    let bound = async || {
        let listed = call(&support, "engine::registered-triggers::list", json!({ "trigger_type": TYPE })).await;
        listed.ok().map(|listed| ids(&listed["registered_triggers"], "id"))
    };
    until("the refused binding is forgotten", async || bound().await.filter(|ids| *ids == [binding.id.clone()])).await;
    trigger.unregister();
    until("its end", async || bound().await.filter(Vec::is_empty)).await;
    let told = async || late.unbound.lock().expect("nobody panics with it").first().cloned();
    assert_eq!(until("the provider is told", told).await, binding.id);
    Ok(())
}
