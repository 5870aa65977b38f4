//! Much data, one way and the other, while somebody else wants an answer.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine_client::{Client, ClientConfig, Item};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use test_rig::Rig;

const MIB: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(280);

/// Less where every exit of the guest to its host is emulated.
fn total_mib() -> usize {
    std::env::var("III_TEST_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(200)
}

/// The same MiB of noise for every caller, different from MiB to MiB.
fn block(number: usize) -> Bytes {
    let mut state = number as u64 + 1;
    let mut data = Vec::with_capacity(MIB);
    while data.len() < MIB {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.into()
}

fn expected_digest() -> &'static str {
    static DIGEST: LazyLock<String> = LazyLock::new(|| {
        let mut digest = Sha256::new();
        for number in 0..total_mib() {
            digest.update(block(number));
        }
        hex(&digest.finalize())
    });
    &DIGEST
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn call(client: &Client, function: &str, payload: Value) -> Value {
    let answer = client.call(function, &payload, PATIENCE).await;
    match answer {
        Ok(Some(value)) => serde_json::from_str(value.get()).expect("JSON"),
        Ok(None) => Value::Null,
        Err(error) => panic!("{function}: {error:?}"),
    }
}

/// Keeps calling a second sandbox until told to stop, and takes a fifth of the time; returns how long each call took.
async fn bystander(client: Client, id: String, done: Arc<AtomicBool>) -> Vec<Duration> {
    let mut answered = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let answer = call(&client, "sandbox::exec", json!({ "sandbox_id": id, "argv": ["echo", "here"] })).await;
        assert_eq!(answer["stdout"], "here\n", "{answer}");
        answered.push(asked.elapsed());
        tokio::time::sleep(asked.elapsed() * 4).await;
    }
    answered
}

#[test]
fn two_hundred_mebibytes_arrive_whole_by_every_way() {
    let rig = Rig::builder().sandboxes().start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = Client::connect(ClientConfig { url: rig.url(), name: "bulk".into(), description: None });
        client.connected(PATIENCE).await.expect("connected");
        let id = call(&client, "sandbox::create", json!({ "image": "python" })).await["sandbox_id"].clone();
        let other = call(&client, "sandbox::create", json!({ "image": "python" })).await["sandbox_id"].clone();
        let done = Arc::new(AtomicBool::new(false));
        let second_client =
            Client::connect(ClientConfig { url: rig.url(), name: "bystander".into(), description: None });
        let watching =
            tokio::spawn(bystander(second_client, other.as_str().expect("an id").to_owned(), Arc::clone(&done)));

        // In: fs::write from a channel.
        let begun = Instant::now();
        let pair = client.create_channel(64).await.expect("a channel");
        let mut writer = client.open_writer(&pair.writer).await.expect("its write end");
        let feeding = tokio::spawn(async move {
            for number in 0..total_mib() {
                let data = block(number);
                for start in (0..MIB).step_by(64 * 1024) {
                    writer.send(Item::Binary(data.slice(start..start + 64 * 1024))).await.expect("sent");
                }
            }
            writer.close().await.expect("closed");
        });
        let written = call(
            &client,
            "sandbox::fs::write",
            json!({ "sandbox_id": id, "path": "/root/big", "content": pair.reader }),
        )
        .await;
        feeding.await.expect("fed");
        assert_eq!(written["bytes_written"], total_mib() * MIB, "{written}");
        let inside =
            call(&client, "sandbox::exec", json!({ "sandbox_id": id, "argv": ["sha256sum", "/root/big"] })).await;
        assert!(inside["stdout"].as_str().unwrap_or("").starts_with(expected_digest()), "{inside}");

        // Out: fs::read.
        let read = call(&client, "sandbox::fs::read", json!({ "sandbox_id": id, "path": "/root/big" })).await;
        let content = serde_json::from_value(read["content"].clone()).expect("a channel");
        assert_eq!(drain(&client, &content).await, expected_digest(), "fs::read");

        // Out: the standard output of a command.
        let streamed =
            call(&client, "sandbox::exec", json!({ "sandbox_id": id, "argv": ["cat", "/root/big"], "stream": true }))
                .await;
        let stdout = serde_json::from_value(streamed["stdout"].clone()).expect("a channel");
        assert_eq!(drain(&client, &stdout).await, expected_digest(), "exec stdout");

        done.store(true, Ordering::Relaxed);
        let (answered, whole) = (watching.await.expect("the bystander"), begun.elapsed());
        let longest = answered.iter().max().copied().unwrap_or_default();
        println!("the second client: {} answers, the longest took {longest:?} of {whole:?}", answered.len());
        assert!(answered.len() >= 3 && longest < whole / 4, "{} answers, {longest:?} of {whole:?}", answered.len());
    });
}

async fn drain(client: &Client, content: &engine_protocol::ChannelRef) -> String {
    let mut reader = client.open_reader(content).await.expect("the read end");
    let mut digest = Sha256::new();
    while let Some(item) = reader.next().await {
        match item.expect("an item") {
            Item::Binary(data) => digest.update(&data),
            Item::Text(text) => panic!("{text}"),
        }
    }
    hex(&digest.finalize())
}

/// An ordinary HTTP server of the host, on an address that is not loopback.
struct HostServer(Child);

impl Drop for HostServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_relay_carries_two_hundred_mebibytes_both_ways() {
    // The guest reaches one port of the host's loopback, the engine's; so the engine is the peer here: a worker in
    // the guest moves the data through channels, which run through the relay.
    let rig = Rig::builder()
        .file(
            "bulk/iii.worker.yaml",
            "name: bulk\nruntime:\n  base_image: python\nscripts:\n  install: \"\"\n  start: python3 worker.py\nresources:\n  cpus: 1\n  memory: 512\n",
        )
        .file("bulk/worker.py", include_str!("guest/bulk_worker.py"))
        .file("bulk/ws.py", include_str!("guest/ws.py"))
        .start();
    let added =
        rig.trigger("worker::add", &json!({ "source": { "kind": "local", "path": rig.project().join("bulk") } }));
    added.unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = Client::connect(ClientConfig { url: rig.url(), name: "bulk-host".into(), description: None });
        client.connected(PATIENCE).await.expect("connected");
        let down = client.create_channel(64).await.expect("a channel");
        let up = client.create_channel(64).await.expect("a channel");
        let mut writer = client.open_writer(&down.writer).await.expect("its write end");
        let feeding = tokio::spawn(async move {
            for number in 0..total_mib() {
                let data = block(number);
                for start in (0..MIB).step_by(64 * 1024) {
                    writer.send(Item::Binary(data.slice(start..start + 64 * 1024))).await.expect("sent");
                }
            }
            writer.close().await.expect("closed");
        });
        // The guest sends back what it receives, as it comes: both directions are busy at once.
        let payload = json!({ "down": down.reader, "up": up.writer });
        let echo = client.call("bulk::echo", &payload, PATIENCE);
        let (digest, answer) = tokio::join!(drain(&client, &up.reader), echo);
        feeding.await.expect("fed");
        assert_eq!(digest, expected_digest());
        let answer: Value = serde_json::from_str(answer.expect("an answer").expect("a result").get()).expect("JSON");
        assert_eq!(answer["bytes"], total_mib() * MIB);
    });
}

#[test]
fn a_guest_with_network_reaches_no_loopback_port_of_the_host() {
    let port = std::net::TcpListener::bind("0.0.0.0:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let server = Command::new("python3")
        .args(["-m", "http.server", "--bind", "0.0.0.0", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(HostServer)
        .expect("python3 is installed");
    let rig = Rig::builder().sandboxes().start();
    let created = rig.call("sandbox::create", &json!({ "image": "python", "network": true }));
    let script = "import socket,sys\n\
        for address in ['100.96.0.1','127.0.0.1','169.254.169.254']:\n\
        \x20try: socket.create_connection((address,int(sys.argv[1])),3); print(address,'open')\n\
        \x20except OSError: print(address,'closed')\n\
        try: print('resolver', socket.gethostbyname('no-such-name.invalid'))\n\
        except OSError as error: print('no such name')\n\
        print('IPv6:', *(line.split()[-1] for line in open('/proc/net/if_inet6')))\n";
    let answer = rig.call(
        "sandbox::exec",
        &json!({ "sandbox_id": created["sandbox_id"], "argv": ["python3", "-c", script, port.to_string()] }),
    );
    let expected = "100.96.0.1 closed\n127.0.0.1 closed\n169.254.169.254 closed\nno such name\nIPv6: lo\n";
    assert_eq!(answer["stdout"], expected, "{answer}");
    drop(server);
}

#[test]
fn a_run_may_bring_more_than_a_mebibyte_of_code_and_files() {
    let rig = Rig::builder().sandboxes().start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = Client::connect(ClientConfig { url: rig.url(), name: "bulk".into(), description: None });
        client.connected(PATIENCE).await.expect("connected");
        let text = "y".repeat(60_000);
        let files: Vec<Value> = (0..30).map(|n| json!({ "path": format!("/data/{n}"), "content": text })).collect();
        let code = "import os\nprint(sum(os.path.getsize('/data/' + n) for n in os.listdir('/data')))\n".to_owned()
            + &format!("# {}", "z".repeat(1_500_000));
        let request = json!({ "image": "python", "files": files, "code": code });
        let answer = call(&client, "sandbox::run", request).await;
        assert_eq!(answer["stdout"], "1800000\n", "{answer}");
        let request = json!({ "image": "python", "code": "", "files": [{ "path": "/dev/null/x", "content": "" }] });
        let error = client.call("sandbox::run", &request, PATIENCE).await.expect_err("no such folder can be made");
        let text = format!("{error:?}");
        assert!(text.contains("fs::write (sibling file)") && text.contains("/dev/null"), "{text}");
    });
}
