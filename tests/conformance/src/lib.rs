//! Runs the programs of `tests/sdk`, written with the published SDKs, against the engine.
//!
//! ```text
//! programs!(python_0_19_7: Sdk::Python("0.19.7"), "python", ".py")
//!     │  one test per program
//!     ▼
//! pass(sdk, program) ──► Rig: an engine with every built-in worker, on free ports
//!          └───────────► the program: ends with `ok`, or with what it did not expect
//! ```
//! Knows addresses and the word that asks for a restart. Knows nothing of what the programs check.
//!
//! Always true:
//! - Each program has an engine of its own.
//! - A program that says nothing until [`PATIENCE`] ends is killed, and its test fails with what it said and the engine's
//!   log.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use test_rig::sdk::Sdk;
use test_rig::{Rig, eventually, free_port};

/// For one program, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a program prints when the engine is to be killed and started anew. It waits for a line then.
const RESTART: &str = "restart the engine";

/// The addresses that programs are told besides the engine's.
struct Ports {
    http: u16,
    streams: u16,
    guarded: u16,
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
    let path = path.canonicalize().unwrap_or(path);
    let ports = Ports { http: free_port(), streams: free_port(), guarded: free_port() };
    let mut rig = Rig::builder().workers(&ports.workers()).start_engine_only();
    let said = rig.project().join("said");
    let mut command = sdk.command(&path, &rig.project().join("program"));
    let mut child = start(&mut command, &rig, &ports, &said);
    let said = || fs::read_to_string(&said).unwrap_or_default();
    let mut restarted = false;
    let ended = eventually(PATIENCE, || {
        if !restarted && said().contains(RESTART) {
            rig.kill_and_restart_engine();
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

fn start(command: &mut Command, rig: &Rig, ports: &Ports, said: &Path) -> Child {
    let said = File::create(said).expect("a file for its words");
    command.env("III_URL", rig.url());
    command.env("III_TEST_HTTP", format!("http://127.0.0.1:{}", ports.http));
    command.env("III_TEST_STREAMS", format!("ws://127.0.0.1:{}", ports.streams));
    command.env("III_TEST_GUARDED", format!("ws://127.0.0.1:{}", ports.guarded));
    command.stdin(Stdio::piped()).stdout(said.try_clone().expect("a second descriptor")).stderr(said);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

impl Ports {
    /// Every built-in worker, each on a port of its own where it has one.
    fn workers(&self) -> String {
        let Self { http, streams, guarded } = self;
        format!(
            r#"
  - name: iii-worker-manager
    config:
      host: 127.0.0.1
      port: {guarded}
      middleware_function_id: "owner::gate"
      rbac:
        auth_function_id: "owner::authenticate"
        expose_functions: ['match("owner::api::*")']
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
    config: {{queue_configs: {{impatient: {{max_retries: 2, backoff_ms: 100}}}}}}
"#
        )
    }
}
