//! config.yaml that changes while the engine runs, for the better and for the worse.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use scenarios::{Bystander, RawWorker};
use serde_json::json;
use test_rig::{Rig, eventually, free_port};

use crate::{beside, code, functions, until_functions, worker};

const PATIENCE: Duration = Duration::from_secs(60);

/// Writes config.yaml with `more` behind what the engine was started with, and waits for `line` in the log.
fn rewrite(rig: &Rig, more: &str, line: &str) {
    let known = rig.log().matches(line).count();
    let first = format!(
        "workers:\n  - name: iii-worker-manager\n    config:\n      host: 127.0.0.1\n      port: {}\n",
        rig.port()
    );
    fs::write(rig.project().join("config.yaml"), first + more).expect("written");
    let said = eventually(PATIENCE, || (rig.log().matches(line).count() > known).then_some(()));
    assert!(said.is_some(), "`{line}` is not in the log");
}

fn last_complaint(rig: &Rig) -> String {
    let log = rig.log();
    log.lines().rfind(|line| line.contains("stays in use")).unwrap_or_default().to_owned()
}

fn bridge(forwards: &[(&str, &str)]) -> String {
    let entry = |(here, there): &(&str, &str)| format!("{{ local_function: '{here}', remote_function: '{there}' }}");
    let forwards: Vec<String> = forwards.iter().map(entry).collect();
    format!("  - name: iii-bridge\n    config: {{ url: 'ws://127.0.0.1:1', forward: [{}] }}\n", forwards.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_an_error_is_named_with_line_and_key_and_the_configuration_before_stays() {
    let workers = bridge(&[("far::kept", "far")]);
    let (rig, bystander) = beside(&workers).await;
    let mut asking = worker(&rig).await;
    // The file's first five lines are the engine's port.
    let cases = [
        ("  - name: [broken\n", "line 6", ""),
        ("wrkers: []\n", "line 6", "wrkers"),
        ("  - nme: iii-state\n", "line 6", "name"),
        ("  - name: iii-pubsub\n  - name: iii-state\n    config: { adapterr: 1 }\n", "line 7", "adapterr"),
        ("  - name: iii-state\n    config: { max_value_bytes: many }\n", "line 6", "max_value_bytes"),
        ("  - name: iii-worker-manager\n    config: { prt: 1 }\n", "line 6", "prt"),
        ("  - name: iii-state\n  - name: iii-state\n", "line 7", "iii-state"),
        ("  - name: iii-state\n    image: x\n", "line 6", "iii-state"),
        (
            "  - name: iii-state\n    config: { adapter: { name: '${NOT_SET_ANYWHERE}' } }\n",
            "line 7",
            "NOT_SET_ANYWHERE",
        ),
    ];
    for (more, line, key) in cases {
        rewrite(&rig, more, "the configuration before stays in use");
        let complaint = last_complaint(&rig);
        assert!(complaint.contains("reload:"), "{complaint}");
        assert!(complaint.contains(line) && complaint.contains(key), "`{line}` and `{key}` are not in {complaint}");
        assert_eq!(functions(&mut asking, "far::").await, ["far::kept"], "{more}");
        let missing = asking.call("state::get", &json!({ "scope": "s", "key": "k" })).await.expect("connected");
        assert_eq!(code(&missing), Some("function_not_found"), "nothing of it is used");
    }
    // Mended, it is taken.
    rewrite(&rig, "  - name: iii-state\n", "reload: done");
    asking
        .call("state::set", &json!({ "scope": "s", "key": "k", "value": 1 }))
        .await
        .expect("connected")
        .expect("stored");
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_blocks_are_taken_removed_workers_go_and_added_ones_come() {
    let (rig, bystander) = beside(&bridge(&[("far::a", "f"), ("far::b", "f")])).await;
    let mut asking = worker(&rig).await;
    until_functions(&mut asking, "far::", &["far::a", "far::b"]).await;
    rewrite(&rig, &bridge(&[("far::b", "f"), ("far::c", "f")]), "reload: done");
    until_functions(&mut asking, "far::", &["far::b", "far::c"]).await;
    rewrite(&rig, "  - name: iii-pubsub\n", "reload: done");
    until_functions(&mut asking, "far::", &[]).await;
    let gone = asking.call("bridge.invoke", &json!({ "function_id": "f" })).await.expect("connected");
    assert_eq!(code(&gone), Some("function_not_found"), "{gone:?}");
    let published = asking.call("publish", &json!({ "topic": "t", "data": {} })).await.expect("connected");
    assert!(published.is_ok(), "{published:?}");
    // Bindings that were made while their worker was not there reach it.
    asking.register("watch::changed").await.expect("connected");
    let trigger = json!({
        "type": "registertrigger", "id": "early", "trigger_type": "state", "function_id": "watch::changed", "config": {},
    });
    asking.say(&trigger).await.expect("connected");
    let refusal = asking.hear_of(|message| message["type"] == "triggerregistrationresult").await.expect("connected");
    assert_eq!(refusal["error"]["code"], "trigger_type_not_found");
    rewrite(&rig, "  - name: iii-state\n", "reload: done");
    asking.begin("state::set", &json!({ "scope": "s", "key": "k", "value": 1 })).await.expect("connected");
    let call = asking.hear_call().await.expect("a call");
    assert_eq!(call["function_id"], "watch::changed");
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_new_settings_fail_goes_back_to_those_before() {
    let (rig, bystander) = beside(&bridge(&[("far::a", "f")])).await;
    let mut asking = worker(&rig).await;
    until_functions(&mut asking, "far::", &["far::a"]).await;
    // Right by its shape, and wrong all the same: one id, two functions.
    let wrong = bridge(&[("far::b", "f"), ("far::b", "g")]);
    rewrite(&rig, &wrong, "goes back to its settings before");
    until_functions(&mut asking, "far::", &["far::a"]).await;
    assert!(rig.log().contains("forward[1].local_function: `far::b` is there twice"), "the log says why");
    // It can be mended from there.
    rewrite(&rig, &bridge(&[("far::b", "f")]), "reload: done");
    until_functions(&mut asking, "far::", &["far::b"]).await;
    bystander.noticed_nothing(&rig).await;
}

fn listener(port: u16) -> String {
    format!("  - name: iii-worker-manager\n    config: {{ host: 127.0.0.1, port: {port} }}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_added_and_removed_and_those_who_came_in_elsewhere_do_not_notice() {
    let (rig, bystander) = beside("").await;
    let (one, other) = (free_port(), free_port());
    rewrite(&rig, &listener(one), "reload: done");
    let mut guest = RawWorker::connect(&format!("ws://127.0.0.1:{one}")).await.expect("connected");
    guest.register("guest::f").await.expect("connected");
    guest.settled().await.expect("connected");
    let mut asking = worker(&rig).await;
    until_functions(&mut asking, "guest::", &["guest::f"]).await;
    rewrite(&rig, &listener(other), "reload: done");
    guest.ended().await.expect("its listener is gone");
    until_functions(&mut asking, "guest::", &[]).await;
    assert!(RawWorker::connect(&format!("ws://127.0.0.1:{one}")).await.is_err(), "nobody listens");
    RawWorker::connect(&format!("ws://127.0.0.1:{other}")).await.expect("connected").settled().await.expect("served");
    // A port that is taken costs that listener, and nothing else.
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("an address").port();
    rewrite(&rig, &(listener(other) + &listener(port)), &format!("could not listen on 127.0.0.1:{port}"));
    RawWorker::connect(&format!("ws://127.0.0.1:{other}")).await.expect("connected").settled().await.expect("served");
    bystander.noticed_nothing(&rig).await;
}

/// At its start, an engine has no configuration before.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_not_started_with_a_file_with_an_error() {
    let rig = Rig::builder().start_engine_only();
    let bystander = Bystander::beside(&rig).await;
    rig.write("wrong.yaml", "workers:\n  - name: iii-state\n    config: { adapterr: 1 }\n");
    let answer = rig.iii(&["--config", "wrong.yaml"]);
    assert_eq!(answer.status, 1, "{answer:?}");
    let said = answer.stdout + &answer.stderr;
    assert!(said.contains("iii-state") && said.contains("adapterr"), "{said}");
    bystander.noticed_nothing(&rig).await;
}
