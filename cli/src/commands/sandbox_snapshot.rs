//! `iii worker sandbox snapshot`, `restore`, `fork`, `pause`, `resume`, `snapshots` and `delete-snapshot`.

use serde_json::{Value, json};

use crate::Outcome;
use crate::arguments::{
    Children, DeleteSnapshot, SandboxFork, SandboxList, SandboxRestore, SandboxSnapshot, SandboxStop, To,
};
use crate::clean::line;
use crate::commands::{LONG, SHORT, print_json};
use crate::connection::Connection;

async fn ask(to: &To, function: &str, request: Value) -> Result<Value, crate::failure::Failure> {
    let connection = Connection::open(&to.address).await?;
    let answer = connection.ask(function, &request, LONG).await;
    connection.close().await;
    answer
}

pub(crate) async fn snapshot(arguments: SandboxSnapshot) -> Outcome {
    let request = json!({ "sandbox_id": arguments.id, "name": arguments.name });
    let answer = ask(&arguments.to, "sandbox::snapshot", request).await?;
    if arguments.to.json {
        print_json(&answer);
    } else {
        println!("{}", line(answer["snapshot_id"].as_str().unwrap_or_default()));
        eprintln!("The sandbox stood still for {} ms", answer["paused_ms"]);
    }
    Ok(0)
}

pub(crate) async fn restore(arguments: SandboxRestore) -> Outcome {
    let request = with_children(json!({ "snapshot": arguments.snapshot }), &arguments.children);
    let answer = ask(&arguments.to, "sandbox::restore", request).await?;
    print_ids(&arguments.to, &answer);
    Ok(0)
}

pub(crate) async fn fork(arguments: SandboxFork) -> Outcome {
    let request = with_children(json!({ "sandbox_id": arguments.id }), &arguments.children);
    let answer = ask(&arguments.to, "sandbox::fork", request).await?;
    print_ids(&arguments.to, &answer);
    Ok(0)
}

fn with_children(mut request: Value, children: &Children) -> Value {
    request["count"] = children.count.into();
    request["name"] = json!(children.name);
    request["idle_timeout_secs"] = json!(children.idle_timeout.map(|limit| limit.as_secs().max(1)));
    request["env"] = children.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    request
}

fn print_ids(to: &To, answer: &Value) {
    if to.json {
        return print_json(answer);
    }
    for id in answer["sandbox_ids"].as_array().into_iter().flatten() {
        println!("{}", line(id.as_str().unwrap_or_default()));
    }
}

pub(crate) async fn pause(arguments: SandboxStop, resume: bool) -> Outcome {
    let (function, said) = if resume { ("sandbox::resume", "Resumed") } else { ("sandbox::pause", "Paused") };
    let answer = ask(&arguments.to, function, json!({ "sandbox_id": arguments.id })).await?;
    if arguments.to.json {
        print_json(&answer);
    } else {
        eprintln!("{said} {}", line(&arguments.id));
    }
    Ok(0)
}

pub(crate) async fn list(arguments: SandboxList) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let answer = connection.ask("snapshot::list", &json!({}), SHORT).await?;
    connection.close().await;
    if arguments.to.json {
        print_json(&answer);
        return Ok(0);
    }
    let rows = answer["snapshots"].as_array().cloned().unwrap_or_default();
    if rows.is_empty() {
        eprintln!("No snapshots: `iii worker sandbox snapshot ID` takes one");
    }
    for row in rows {
        let text = |field: &str| line(row[field].as_str().unwrap_or("-"));
        let mib = row["size_bytes"].as_u64().unwrap_or(0) >> 20;
        println!("{}  {:10} {mib:>6} MiB  {}", text("snapshot_id"), text("image"), text("name"));
    }
    Ok(0)
}

pub(crate) async fn delete(arguments: DeleteSnapshot) -> Outcome {
    let answer = ask(&arguments.to, "snapshot::delete", json!({ "snapshot": arguments.snapshot })).await?;
    if arguments.to.json {
        print_json(&answer);
    } else {
        eprintln!("Deleted {}", line(&arguments.snapshot));
    }
    Ok(0)
}
