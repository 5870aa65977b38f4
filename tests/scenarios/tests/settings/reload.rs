//! Workers whose settings stand in config.yaml only: an edit starts them anew.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use engine_client::{Call, Client, ClientConfig, FunctionSpec};
use futures_util::SinkExt;
use serde_json::{Value, json};
use test_rig::{Rig, free_port};
use tokio::runtime::Runtime;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::{PATIENCE, Peer, edit, engine, restart, set, until};

#[test]
fn commands_run_anew_when_they_or_what_is_watched_change() {
    let rig = engine("  - {name: iii-exec, config: {exec: [\"echo first >> one\", \"sleep 1000\"], watch: [a.txt]}}\n");
    let count = |file: &str| std::fs::read_to_string(rig.project().join(file)).unwrap_or_default().lines().count();
    until(&rig, "the commands", || (count("one") == 1).then_some(()));
    until(&rig, "the last one stays", || (!rig.family_named("sleep 1000").is_empty()).then_some(()));
    rig.write("a.txt", "changed");
    until(&rig, "a run after the change", || (count("one") == 2).then_some(()));
    edit(&rig, "first >> one", "second >> two");
    until(&rig, "the new commands", || (count("two") == 1).then_some(()));
    edit(&rig, "[a.txt]", "[b.txt]");
    until(&rig, "one more run", || (count("two") == 2).then_some(()));
    until(&rig, "the last one stays", || (!rig.family_named("sleep 1000").is_empty()).then_some(()));
    rig.write("b.txt", "changed");
    until(&rig, "a run after the change", || (count("two") == 3).then_some(()));
}

#[test]
fn a_bridge_leads_where_config_yaml_says() {
    let (there, other) = (engine(""), engine(""));
    let far = Peer::connect(&there);
    far.offer(&there, "shop::quote", |_| Ok(json!("a quote")));
    far.offer(&there, "shop::slow", |_| Ok(Value::Null));
    let forward = "forward: [{local_function: \"near::quote\", remote_function: \"shop::quote\"}]";
    let rig = engine(&format!(
        "  - {{name: iii-bridge, config: {{url: \"{}\", service_id: x, service_name: y, {forward}, \
         expose: [{{local_function: \"here::stock\"}}]}}}}\n",
        there.url()
    ));
    let near = Peer::connect(&rig);
    near.offer(&rig, "here::stock", |_| Ok(json!("stock")));
    let says = |rig: &Rig, function: &str| rig.trigger(function, &json!({})).ok();
    until(&rig, "a forward", || (says(&rig, "near::quote")? == "a quote").then_some(()));
    until(&rig, "an exposed function", || (says(&there, "here::stock")? == "stock").then_some(()));

    edit(&rig, "near::quote", "near::price");
    until(&rig, "another forward", || (says(&rig, "near::price")? == "a quote").then_some(()));
    let gone = rig.trigger("near::quote", &json!({})).expect_err("it is gone");
    assert_eq!(gone["code"], "function_not_found");
    edit(&rig, "remote_function: \"shop::quote\"", "remote_function: \"shop::stuck\", timeout_ms: 50");
    {
        let _context = far.runtime.enter();
        let spec = FunctionSpec { id: "shop::stuck".into(), ..FunctionSpec::default() };
        far.client.register(spec, |_: Call| std::future::pending());
    }
    until(&there, "shop::stuck", || {
        there.trigger("engine::functions::info", &json!({ "function_id": "shop::stuck" })).ok()
    });
    until(&rig, "too slow", || {
        let error = rig.trigger("near::price", &json!({})).err()?;
        (error["code"] == "bridge_error" && error["message"].as_str()?.contains("50")).then_some(())
    });
    edit(
        &rig,
        "{local_function: \"here::stock\"}",
        "{local_function: \"here::stock\", remote_function: \"far::stock\"}",
    );
    until(&rig, "another name there", || (says(&there, "far::stock")? == "stock").then_some(()));
    until(&rig, "the old name is gone", || says(&there, "here::stock").is_none().then_some(()));
    edit(&rig, &there.url(), &other.url());
    until(&rig, "another engine", || (says(&other, "far::stock")? == "stock").then_some(()));
}

/// Answers every request with `"pong"`.
fn http_server() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n\"pong\"");
        }
    });
    port
}

#[test]
fn functions_at_urls_obey_the_rules_of_config_yaml() {
    let port = http_server();
    let security =
        "security: {url_allowlist: [], env_allowlist: [\"P*\"], block_private_ips: false, require_https: false}";
    let rig = engine(&format!("  - {{name: iii-http-functions, config: {{{security}}}}}\n"));
    let runtime = Runtime::new().expect("a runtime");
    let url = format!("http://127.0.0.1:{port}/");
    let (mut socket, _) = runtime.block_on(connect_async(rig.url())).expect("connected");
    let register = json!({ "type": "registerfunction", "id": "out::ping", "invocation": { "url": url, "method": "POST",
            "auth": { "type": "bearer", "token_key": "PATH" } } });
    runtime.block_on(socket.send(Message::text(register.to_string()))).expect("sent");
    let answer = || rig.trigger("out::ping", &json!({}));
    until(&rig, "an answer", || (answer().ok()? == "pong").then_some(()));
    for (open, shut) in [
        ("require_https: false", "require_https: true"),
        ("block_private_ips: false", "block_private_ips: true"),
        ("url_allowlist: []", "url_allowlist: [\"*.shop.test\"]"),
        ("env_allowlist: [\"P*\"]", "env_allowlist: [\"SHOP_*\"]"),
    ] {
        edit(&rig, open, shut);
        until(&rig, shut, || answer().err());
        edit(&rig, shut, open);
        until(&rig, open, || (answer().ok()? == "pong").then_some(()));
    }
}

#[test]
fn listeners_come_change_and_go_with_config_yaml() {
    let rig = engine("  - {name: iii-cron}\n");
    let owner = Peer::connect(&rig);
    for id in ["api::open", "secret::key"] {
        owner.offer(&rig, id, move |_| Ok(json!(id)));
    }
    // Answers instead of what is called.
    owner.offer(&rig, "door::gate", |asked| Ok(json!({ "instead of": asked["function_id"] })));
    let port = free_port();
    let plain = "  - {name: iii-cron}\n";
    let guarded = |host: &str, more: &str| {
        format!("{plain}  - {{name: iii-worker-manager, config: {{host: {host}, port: {port}{more}}}}}\n")
    };
    let runtime = Runtime::new().expect("a runtime");
    let call = |host: &str, function: &str| {
        runtime.block_on(async {
            let url = format!("ws://{host}:{port}");
            let client = Client::connect(ClientConfig { url, name: "guest".into(), description: None });
            client.connected(PATIENCE).await.expect("connected");
            let answer = client.call(function, &json!({}), PATIENCE).await;
            client.shutdown().await;
            answer.map(|answer| serde_json::from_str::<Value>(answer.expect("a value").get()).expect("JSON"))
        })
    };
    edit(&rig, plain, &guarded("127.0.0.1", ""));
    assert_eq!(call("127.0.0.1", "secret::key").expect("everything is open"), "secret::key");
    edit(&rig, &guarded("127.0.0.1", ""), &guarded("127.0.0.2", ""));
    assert_eq!(call("127.0.0.2", "secret::key").expect("everything is open"), "secret::key");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    let rules = ", rbac: {expose_functions: [\"match(\\\"api::*\\\")\"]}";
    edit(&rig, &guarded("127.0.0.2", ""), &guarded("127.0.0.2", rules));
    assert_eq!(call("127.0.0.2", "api::open").expect("it is exposed"), "api::open");
    let error = call("127.0.0.2", "secret::key").expect_err("it is not").to_string();
    assert!(error.contains("FORBIDDEN"), "{error}");
    let gate = format!("{rules}, middleware_function_id: \"door::gate\"");
    edit(&rig, &guarded("127.0.0.2", rules), &guarded("127.0.0.2", &gate));
    assert_eq!(call("127.0.0.2", "api::open").expect("an answer"), json!({ "instead of": "api::open" }));
    edit(&rig, &guarded("127.0.0.2", &gate), plain);
    assert!(std::net::TcpStream::connect(("127.0.0.2", port)).is_err());
    assert_eq!(rig.call("api::open", &json!({})), "api::open");
}

#[test]
fn functions_that_config_yaml_names_are_asked_about_guests_and_what_they_register() {
    let rig = engine("  - {name: iii-cron}\n");
    let owner = Peer::connect(&rig);
    owner.offer(&rig, "owner::ticket", |_| Ok(json!("a ticket")));
    owner.offer(&rig, "door::guest", |asked| {
        assert!(asked["ip_address"].is_string(), "{asked}");
        Ok(json!({ "allowed_functions": ["owner::ticket"], "allow_trigger_type_registration": true }))
    });
    owner.offer(&rig, "door::function", |_| Ok(json!({ "function_id": "guests::renamed" })));
    owner.offer(&rig, "door::trigger", |_| Ok(json!({ "config": { "expression": "0 0 0 1 1 *" } })));
    owner.offer(&rig, "door::type", |_| Ok(json!({ "trigger_type_id": "guests-type" })));
    let port = free_port();
    let plain = "  - {name: iii-cron}\n";
    let hooks = "auth_function_id: \"door::guest\", on_function_registration_function_id: \"door::function\", \
                 on_trigger_registration_function_id: \"door::trigger\", \
                 on_trigger_type_registration_function_id: \"door::type\"";
    let guarded = format!(
        "{plain}  - {{name: iii-worker-manager, config: {{host: 127.0.0.1, port: {port}, rbac: {{{hooks}}}}}}}\n"
    );
    edit(&rig, plain, &guarded);
    let runtime = Runtime::new().expect("a runtime");
    let guest = runtime.block_on(async {
        let url = format!("ws://127.0.0.1:{port}");
        let guest = Client::connect(ClientConfig { url, name: "guest".into(), description: None });
        guest.register(FunctionSpec { id: "guest::mine".into(), ..FunctionSpec::default() }, |_: Call| async {
            Ok(None)
        });
        guest.register_trigger_type("my-type", "Mine", None);
        guest.register_trigger("cron", "guests::renamed", &json!({ "expression": "0 0 0 2 2 *" }));
        guest.connected(PATIENCE).await.expect("let in");
        let ticket = guest.call("owner::ticket", &json!({}), PATIENCE).await.expect("allowed").expect("a value");
        assert_eq!(ticket.get(), "\"a ticket\"");
        let error = guest.call("door::guest", &json!({}), PATIENCE).await.expect_err("not allowed").to_string();
        assert!(error.contains("FORBIDDEN"), "{error}");
        guest
    });
    let ask = |function: &str, payload: Value| rig.trigger(function, &payload).ok();
    until(&rig, "a renamed function", || ask("engine::functions::info", json!({ "function_id": "guests::renamed" })));
    until(&rig, "a renamed type", || ask("engine::triggers::info", json!({ "id": "guests-type" })));
    assert!(ask("engine::functions::info", json!({ "function_id": "guest::mine" })).is_none());
    assert!(ask("engine::triggers::info", json!({ "id": "my-type" })).is_none());
    until(&rig, "a changed trigger", || {
        let listed = ask("engine::registered-triggers::list", json!({ "function_id": "guests::renamed" }))?;
        (listed["registered_triggers"][0]["config"]["expression"] == "0 0 0 1 1 *").then_some(())
    });
    drop(guest);
}

#[test]
fn configuration_stays_where_it_is_until_the_next_start() {
    let mut rig = engine("  - {name: configuration, config: {ttl_seconds: 0}}\n  - {name: iii-state}\n");
    let size = |bytes: u64| json!({ "max_value_bytes": bytes });
    let stored = |rig: &Rig| rig.call("configuration::get", &json!({ "id": "iii-state" }))["value"].clone();
    set(&rig, "iii-state", &size(10));
    let elsewhere = "{adapter: {name: fs, config: {directory: ./elsewhere}}, ttl_seconds: 1}";
    edit(&rig, "{ttl_seconds: 0}", elsewhere);
    set(&rig, "iii-state", &size(20));
    assert_eq!(stored(&rig), size(20));
    restart(&mut rig);
    assert_eq!(stored(&rig), json!({}), "another folder, with what config.yaml says");
    assert!(rig.project().join("elsewhere/iii-state.yaml").exists());
    // An entry goes with its last own trigger.
    let entry = json!({ "id": "billing", "name": "Billing", "description": "", "schema": {}, "initial_value": 1 });
    let _ = rig.call("configuration::register", &entry);
    let peer = Peer::connect(&rig);
    peer.offer(&rig, "billing::changed", |_| Ok(Value::Null));
    peer.bind(&rig, "configuration", "billing::changed", &json!({ "configuration_id": "billing" }));
    drop(peer);
    until(&rig, "the entry goes", || rig.trigger("configuration::get", &json!({ "id": "billing" })).err());

    // Another engine keeps everything.
    let keeper = engine("");
    let bridge = format!("{{adapter: {{name: bridge, config: {{bridge_url: \"{}\"}}}}}}", keeper.url());
    edit(&rig, elsewhere, &bridge);
    restart(&mut rig);
    until(&rig, "settings at the other engine", || {
        keeper.trigger("configuration::get", &json!({ "id": "iii-state" })).ok()
    });
    // An adapter without settings of its own has its defaults.
    edit(&rig, &bridge, "{adapter: {name: fs, config: {}}}");
    restart(&mut rig);
    assert_eq!(stored(&rig), size(20));
}
