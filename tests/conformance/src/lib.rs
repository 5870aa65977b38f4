//! Published SDKs against the engine: the programs of `tests/sdk`, and the published crate's own tests.
//!
//! ```text
//! programs!(python_0_19_7: Sdk::Python("0.19.7"), "python", ".py");
//!     │  one test per program
//!     ▼
//! pass(sdk, program) ──► Conformance: an engine with every built-in worker, on free ports
//!          └───────────► the program: ends with `ok`, or with what it did not expect
//! ```
//! Knows addresses and the word that asks for a restart. Knows nothing of what the programs check.
//!
//! Always true:
//! - Each program has an engine of its own.
//! - A program that has not ended after `PATIENCE` is killed; its test fails with what it said and the engine's log.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use test_rig::sdk::Sdk;
use test_rig::{Rig, eventually, free_port};

/// For one program, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a program prints when the engine is to be killed and started anew. It waits for a line then.
const RESTART: &str = "restart the engine";

/// What guards the second listener in the programs.
const GUARD: &str = r#"
      middleware_function_id: "owner::gate"
      rbac:
        auth_function_id: "owner::authenticate"
        expose_functions: ['match("owner::api::*")']"#;

const QUEUES: &str = "{impatient: {max_retries: 2, backoff_ms: 100}}";

/// An engine with every built-in worker, each on a port of its own where it has one.
pub struct Conformance {
    pub rig: Rig,
    pub http: String,
    pub streams: String,
    pub guarded: String,
}

/// One test for each program, in a module that is named like the SDK.
#[macro_export]
macro_rules! programs {
    ($module:ident: $sdk:expr, $folder:literal, $ending:literal) => {
        mod $module {
            use test_rig::sdk::Sdk;

            fn pass(program: &str) {
                $crate::pass($sdk, &format!("{}/{program}{}", $folder, $ending));
            }

            #[test]
            fn calls_answers_errors_and_void_calls() {
                pass("calls");
            }
            #[test]
            fn a_hundred_mebibytes_through_channels_both_ways() {
                pass("channels");
            }
            #[test]
            fn workers_and_functions_that_come_and_go_are_announced() {
                pass("discovery");
            }
            #[test]
            fn publish_cron_log_and_configuration_events() {
                pass("events");
            }
            #[test]
            fn functions_that_are_http_endpoints_elsewhere() {
                pass("http_functions");
            }
            #[test]
            fn http_routes_middleware_and_streamed_bodies() {
                pass("http_routes");
            }
            #[test]
            fn death_in_mid_call_and_reconnect_after_an_engine_restart() {
                pass("leaving");
            }
            #[test]
            fn topics_queues_and_dead_letters() {
                pass("mail_queue");
            }
            #[test]
            fn a_guarded_listener_decides_who_calls_what() {
                pass("rbac");
            }
            #[test]
            fn state_updates_and_events() {
                pass("state");
            }
            #[test]
            fn streams_and_their_subscribers() {
                pass("stream");
            }
            #[test]
            fn telemetry_of_calls_arrives() {
                pass("traces");
            }
            #[test]
            fn trigger_types_of_workers() {
                pass("triggers");
            }
        }
    };
}

/// Runs one program to its end. `program` is its path below `tests/sdk`.
///
/// # Panics
/// When it does not end well.
pub fn pass(sdk: Sdk, program: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").join(program);
    let mut engine = Conformance::start(GUARD, QUEUES);
    let folder = engine.rig.project().join("program");
    let said = folder.join("said");
    let mut command = sdk.command(&path, &folder);
    let output = File::create(&said).expect("a file for its words");
    command.env("III_URL", engine.rig.url()).env("III_TEST_HTTP", &engine.http);
    command.env("III_TEST_STREAMS", &engine.streams).env("III_TEST_GUARDED", &engine.guarded);
    command.stdin(Stdio::piped()).stdout(output.try_clone().expect("a second descriptor")).stderr(output);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = || fs::read_to_string(&said).unwrap_or_default();
    let mut restarted = false;
    let ended = eventually(PATIENCE, || {
        if !restarted && said().contains(RESTART) {
            engine.rig.kill_and_restart_engine();
            writeln!(child.stdin.as_ref()?, "restarted").expect("the program listens");
            restarted = true;
        }
        child.try_wait().expect("a child of ours")
    });
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let ok = ended.is_some_and(|status| status.success()) && said().lines().any(|line| line == "ok");
    assert!(ok, "{program} with {sdk:?}: {ended:?}\n{}", said());
}

impl Conformance {
    /// `guard` is what the second listener's block holds besides its address, `queues` are the named queues; both YAML.
    ///
    /// # Panics
    /// When the engine does not start.
    #[must_use]
    pub fn start(guard: &str, queues: &str) -> Self {
        let [http, streams, guarded] = [free_port(), free_port(), free_port()];
        let workers = format!(
            "
  - name: iii-worker-manager
    config:
      host: 127.0.0.1
      port: {guarded}{guard}
  - name: iii-observability
    config: {{prometheus: {{enabled: false}}}}
  - name: iii-state
  - name: iii-stream
    config: {{host: 127.0.0.1, port: {streams}}}
  - name: iii-http
    config: {{host: 127.0.0.1, port: {http}}}
  - name: iii-pubsub
  - name: iii-cron
  - name: iii-http-functions
    config: {{security: {{block_private_ips: false, require_https: false}}}}
  - name: iii-queue
    config: {{queue_configs: {queues}}}
"
        );
        Self {
            rig: Rig::builder().workers(&workers).start_engine_only(),
            http: format!("http://127.0.0.1:{http}"),
            streams: format!("ws://127.0.0.1:{streams}"),
            guarded: format!("ws://127.0.0.1:{guarded}"),
        }
    }
}
