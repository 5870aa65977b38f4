//! Calls between two workers: answers, errors, void calls, and what discovery says of them.

use iii_sdk::{IIIError, RegisterFunction, TriggerAction};
use serde_json::{Value, json};

use crate::world::{Inbox, Outcome, call, connect, failure, register, send, there, until};

pub async fn run() -> Outcome {
    let (shop, till) = (connect("shop"), connect("till"));
    let quote = |data: Value| async move {
        match (data["sku"].as_str(), data["qty"].as_f64()) {
            (Some("gone"), _) => Err(IIIError::Handler("out of stock".to_owned())),
            (_, Some(quantity)) => Ok(json!({ "total": quantity * 1.5, "asked": data })),
            _ => Err(IIIError::Handler("no quantity".to_owned())),
        }
    };
    let quote = RegisterFunction::new_async(quote).description("Prices a basket").metadata(json!({ "public": true }));
    shop.register_function("shop::quote", quote);
    register(&shop, "shop::nothing", |_| async { Ok(Value::Null) });
    let notes = Inbox::registered(&shop, "shop::note");
    there(&till, &["shop::quote", "shop::nothing", "shop::note"]).await;

    let payload = json!({
        "sku": "A-17", "qty": 3, "text": "ä ☃ \u{2028} \\ \" \n", "deep": [[[{ "x": null }]]], "big": 1_u64 << 53
    });
    let mut answer = call(&till, "shop::quote", payload.clone()).await?;
    assert_eq!(answer["total"], 4.5);
    let asked = answer["asked"].as_object_mut().expect("an object");
    assert!(asked.remove("_caller_worker_id").is_some());
    assert_eq!(answer["asked"], payload);
    assert_eq!(call(&till, "shop::nothing", json!({})).await?, Value::Null);

    for (function, sku, code, words) in [
        ("shop::quote", "gone", "invocation_failed", "out of stock"),
        ("shop::nope", "x", "function_not_found", "shop::nope"),
    ] {
        let (failed, message) = failure(call(&till, function, json!({ "sku": sku, "qty": 1 })).await);
        assert_eq!(failed, code);
        assert!(message.contains(words), "{message}");
    }

    send(&till, "shop::note", json!({ "n": 1 }), Some(TriggerAction::Void)).await?;
    assert_eq!(notes.wait(1).await[0]["n"], 1);

    let info = call(&till, "engine::functions::info", json!({ "function_id": "shop::quote" })).await?;
    assert_eq!(info["description"], "Prices a basket");
    assert_eq!(info["metadata"], json!({ "public": true }));
    let worker = until("shop in the list", async || {
        let listed = call(&till, "engine::workers::list", json!({})).await.ok()?;
        listed["workers"].as_array()?.iter().find(|worker| worker["name"] == "shop").cloned()
    });
    let worker = worker.await;
    assert_eq!(worker["runtime"], "rust");
    assert_eq!(worker["function_count"], 3);
    Ok(())
}
