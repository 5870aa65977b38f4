//! A guarded listener: who may come in, what they may call, and under which names they register.

use iii_sdk::{AuthInput, AuthResult, IIIError, MiddlewareFunctionInput, RegisterFunction};
use serde_json::{Value, json};

use crate::world::{Outcome, call, connect, connect_to, failure, ids, register, setting, there, until};

async fn authenticate(input: AuthInput) -> Result<AuthResult, IIIError> {
    if input.query_params.get("tenant").is_none_or(|tenant| tenant != &["blue"]) {
        return Err(IIIError::Handler("unknown tenant".to_owned()));
    }
    Ok(AuthResult {
        allowed_functions: vec!["owner::named".to_owned(), "engine::functions::list".to_owned()],
        forbidden_functions: vec!["owner::api::secret".to_owned()],
        allowed_trigger_types: None,
        allow_trigger_type_registration: false,
        allow_function_registration: true,
        context: json!({ "tenant": "blue" }),
        function_registration_prefix: Some("blue".to_owned()),
    })
}

pub async fn run() -> Outcome {
    let iii = connect("owner");
    iii.register_function("owner::authenticate", RegisterFunction::new_async(authenticate));
    let caller = iii.clone();
    let gate = move |input: MiddlewareFunctionInput| {
        let caller = caller.clone();
        async move {
            if input.payload["blocked"] == true {
                return Err(IIIError::Handler(format!("blocked for {}", input.context["tenant"])));
            }
            call(&caller, &input.function_id, input.payload).await
        }
    };
    iii.register_function("owner::gate", RegisterFunction::new_async(gate));
    for function in ["owner::named", "owner::other", "owner::api::open", "owner::api::secret"] {
        register(&iii, function, |mut data: Value| async move {
            data.as_object_mut().map(|data| data.remove("_caller_worker_id"));
            Ok(data)
        });
    }
    there(&iii, &["owner::authenticate", "owner::gate", "owner::other", "owner::api::secret"]).await;

    let tenant = connect_to(&format!("{}/?tenant=blue", setting("III_TEST_GUARDED")), "tenant");
    let entered = until("the tenant is in", async || call(&tenant, "owner::named", json!({ "n": 1 })).await.ok());
    assert_eq!(entered.await, json!({ "n": 1 }));
    assert_eq!(call(&tenant, "owner::api::open", json!({ "n": 2 })).await?, json!({ "n": 2 }));
    for (function, payload, code) in [
        ("owner::api::secret", json!({}), "FORBIDDEN"),
        ("owner::other", json!({}), "FORBIDDEN"),
        ("owner::named", json!({ "blocked": true }), "invocation_failed"),
    ] {
        assert_eq!(failure(call(&tenant, function, payload).await).0, code, "{function}");
    }
    let listed = call(&tenant, "engine::functions::list", json!({})).await?;
    let seen = ids(&listed["functions"], "function_id");
    assert!(seen.iter().any(|id| id == "owner::api::open") && seen.iter().all(|id| id != "owner::other"), "{seen:?}");

    register(&tenant, "greet", |data| async move {
        Ok(json!(format!("hello {}", data["name"].as_str().unwrap_or("nobody"))))
    });
    there(&iii, &["blue::greet"]).await;
    assert_eq!(call(&iii, "blue::greet", json!({ "name": "Ada" })).await?, "hello Ada");
    Ok(())
}
