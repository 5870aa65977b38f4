//! Images from a real registry: as workers, as sandboxes, and when they cannot be had.

use serde_json::{Value, json};
use test_rig::{Rig, TestRegistry};

const BARE_WORKER: &str = include_str!("guest/bare_worker.py");
const WEB_SOCKET: &str = include_str!("guest/ws.py");

fn add(rig: &Rig, reference: &str) -> Result<Value, Value> {
    rig.trigger("worker::add", &json!({ "source": { "kind": "oci", "reference": reference } }))
}

#[test]
fn an_image_is_a_worker_and_a_sandbox() {
    let registry = TestRegistry::start();
    let files = [("worker.py", BARE_WORKER), ("ws.py", WEB_SOCKET), ("answer.txt", "from an image")];
    let reference = registry.push_worker("acme/scorer:2", &files, &["python3", "/app/worker.py"]);
    let sandboxes = format!(
        "  - name: iii-sandbox\n    config:\n      image_allowlist: [scoring]\n      custom_images: {{scoring: \"{reference}\"}}\n"
    );
    let rig = Rig::builder().workers(&sandboxes).own("images").start();
    let added = add(&rig, &reference).unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    assert_eq!((&added["name"], &added["awaited_ready"]), (&json!("scorer"), &json!(true)), "{added}");
    assert_eq!(rig.call("bare::answer", &json!({}))["answer"], "from an image");
    let config = std::fs::read_to_string(rig.project().join("config.yaml")).expect("config.yaml");
    assert!(config.contains(&reference), "{config}");
    let status = rig.call("worker::status", &json!({ "name": "scorer" }));
    assert_eq!((&status["worker_type"], &status["status"]), (&json!("oci"), &json!("ready")), "{status}");
    // The same image, without its entry point, and in its working directory.
    let run = rig.call("sandbox::run", &json!({ "image": "scoring", "lang": "shell", "code": "pwd; cat answer.txt" }));
    assert_eq!(run["stdout"], "/app\nfrom an image", "{run}");
    // The registry is gone: what was pulled is still there.
    drop(registry);
    let _ = rig.call("worker::stop", &json!({ "name": "scorer", "yes": true }));
    let started = rig.call("worker::start", &json!({ "name": "scorer" }));
    assert_eq!(started["awaited_ready"], true, "{started}");
    assert_eq!(rig.call("bare::answer", &json!({}))["answer"], "from an image");
}

#[test]
fn an_unknown_image_and_an_unreachable_registry_are_typed_errors() {
    let rig = Rig::builder().start();
    let closed = test_rig::free_port();
    let reference = format!("127.0.0.1:{closed}/nobody/nothing:1");
    let error = rig
        .trigger("worker::add", &json!({ "source": { "kind": "oci", "reference": reference } }))
        .expect_err("nobody listens");
    assert_eq!(error["code"], "W141", "{error}");
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
    let registry = TestRegistry::start();
    let reference = format!("{}/no/such:image", registry.host());
    let error = rig
        .trigger("worker::add", &json!({ "source": { "kind": "oci", "reference": reference } }))
        .expect_err("no such image");
    assert_eq!(error["code"], "W141", "{error}");
    assert!(error.to_string().contains("no/such:image"), "{error}");
}

#[test]
fn a_layer_with_a_wrong_digest_is_refused_and_nothing_is_installed() {
    let registry = TestRegistry::start();
    let reference = registry.push_new("damaged:1");
    registry.damage_largest_blob();
    let rig = Rig::builder().own("images").start();
    let before = std::fs::read_to_string(rig.project().join("config.yaml")).expect("config.yaml");
    let error = rig
        .trigger("worker::add", &json!({ "source": { "kind": "oci", "reference": reference } }))
        .expect_err("a damaged layer");
    assert_eq!(error["code"], "W141", "{error}");
    assert!(error.to_string().contains("does not match its digest"), "{error}");
    assert_eq!(std::fs::read_to_string(rig.project().join("config.yaml")).expect("config.yaml"), before);
    for folder in ["images/sha256", "images/tmp", "workers"] {
        let left = std::fs::read_dir(rig.home().join(folder)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{folder}");
    }
}
