//! `worker::schema`: what each function takes, and the manifest's shape.

use daemon_api::WorkerError;
use daemon_api::worker::SchemaOf;
use serde_json::{Value, json};

use crate::worker::{DEFAULT_CPUS, DEFAULT_MEMORY_MIB, MANIFEST};

/// Longest identifier that is repeated in an error.
const MAX_ECHO: usize = 100;

pub(crate) fn call(schemas: &[Value], request: &SchemaOf) -> Result<Value, WorkerError> {
    let Some(wanted) = &request.function_id else { return Ok(json!({ "schemas": schemas })) };
    if wanted == MANIFEST {
        return Ok(json!({ "schemas": [manifest()] }));
    }
    let found = schemas.iter().find(|schema| schema["function_id"] == wanted.as_str());
    found.map(|schema| json!({ "schemas": [schema] })).ok_or_else(|| {
        let wanted: String = wanted.chars().take(MAX_ECHO).collect();
        let reason = format!("there is no `{wanted}`: leave function_id out to see all, or ask for `{MANIFEST}`");
        WorkerError::BadRequest { function_id: "worker::schema".into(), reason }
    })
}

/// The manifest's shape, and a worker to start from.
fn manifest() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let amount = |description: &str, default: u32| json!({ "type": "integer", "minimum": 1, "default": default, "description": description });
    json!({
        "function_id": MANIFEST,
        "description": "A worker's manifest, in its folder",
        "default_timeout_ms": Value::Null,
        "idempotent": true,
        "request": {
            "type": "object", "additionalProperties": false, "required": ["name"],
            "properties": {
                "name": text("Letters, digits, `-`, `_` and `.`"),
                "description": text("What it is for"),
                "runtime": {
                    "type": "object", "additionalProperties": false, "description": "What it runs on",
                    "properties": { "base_image": text("An OCI image; the default follows from the project's files") },
                },
                "scripts": {
                    "type": "object", "additionalProperties": false, "description": "Shell commands, run in /workspace",
                    "properties": {
                        "setup": text("System packages; runs once per disk"),
                        "install": text("Dependencies; runs again when a dependency file changes"),
                        "start": text("The worker: runs until it is stopped"),
                    },
                },
                "env": {
                    "type": "object", "additionalProperties": { "type": "string" },
                    "description": "Environment variables of all scripts",
                },
                "dependencies": {
                    "type": "object", "additionalProperties": { "type": "string" },
                    "description": "Other workers, by name, with version ranges",
                },
                "resources": {
                    "type": "object", "additionalProperties": false, "description": "Size of its VM",
                    "properties": { "cpus": amount("Virtual processors", DEFAULT_CPUS), "memory": amount("MiB", DEFAULT_MEMORY_MIB) },
                },
            },
        },
        "response": hello_world(),
    })
}

fn hello_world() -> Value {
    json!({
        "_usage": "write these files into a folder, then call worker::add with its path",
        "iii.worker.yaml": "name: hello-world\ndescription: Greets whoever asks\nruntime:\n  base_image: node\nscripts:\n  install: npm install\n  start: node src/index.js\n",
        "package.json": "{\n  \"name\": \"hello-world\",\n  \"private\": true,\n  \"type\": \"module\",\n  \"dependencies\": { \"iii-sdk\": \"^0.22.0\" }\n}\n",
        "src/index.js": "import { registerWorker } from 'iii-sdk';\n\nconst iii = registerWorker(process.env.III_URL);\niii.registerFunction('hello-world::greet', async ({ name = 'world' }) => ({ message: `Hello, ${name}` }));\n",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hello_world_is_a_valid_worker() {
        let bundle = hello_world();
        let verdict = crate::worker::validate_text(bundle[MANIFEST].as_str().expect("a manifest"));
        assert!(verdict.valid && verdict.warnings.is_empty(), "{verdict:?}");
        let package: Value = serde_json::from_str(bundle["package.json"].as_str().expect("text")).expect("JSON");
        assert_eq!(package["type"], "module");
    }

    #[test]
    fn an_unknown_function_is_a_bad_request() {
        let ask = |id: &str| call(&[], &SchemaOf { function_id: Some(id.to_owned()) });
        assert_eq!(ask("worker::nope").expect_err("unknown").code(), "W105");
        assert!(ask(MANIFEST).is_ok());
    }
}
