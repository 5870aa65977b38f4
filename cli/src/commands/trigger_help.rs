//! `iii trigger <function> --help`: what a function takes, from what its worker published.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::Outcome;
use crate::arguments::{Arguments, Trigger};
use crate::clean::line;
use crate::connection::Connection;
use crate::failure::Failure;

/// Parts of a schema that are looked at for one type. More of them, or a circle, are `any`.
const MAX_PARTS: u32 = 64;

/// Columns are as wide as their widest cell, but not wider than this: a longer cell moves the rest of its row.
const MAX_COLUMN: usize = 40;

pub(crate) async fn run(arguments: &Trigger) -> Outcome {
    let Some(function) = &arguments.function_path else {
        println!("{}", static_help());
        return Ok(0);
    };
    match info(arguments, function).await {
        Ok(info) => {
            print!("{}", describe(function, &info));
            Ok(0)
        }
        Err(failure) if failure.body().is_some_and(|body| body.code == "NOT_FOUND") => {
            Err(Failure::new(format!("there is no function `{}`", line(function)))
                .hint("run `iii trigger engine::functions::list` to see those there are"))
        }
        Err(failure) => {
            eprintln!("warning: nothing is known about `{}`: {}\n", line(function), line(failure.what()));
            println!("{}", static_help());
            Ok(0)
        }
    }
}

async fn info(arguments: &Trigger, function: &str) -> Result<Value, Failure> {
    let patience = Duration::from_millis(arguments.timeout_ms);
    let start = Instant::now();
    let connection = Connection::open_within(&arguments.address, patience).await?;
    let left = patience.saturating_sub(start.elapsed());
    let info = connection.ask("engine::functions::info", &json!({ "function_id": function }), left).await;
    connection.close().await;
    info
}

fn static_help() -> String {
    let mut command = Arguments::command();
    command.build();
    command.find_subcommand_mut("trigger").map(|trigger| trigger.render_help().to_string()).unwrap_or_default()
}

fn describe(function: &str, info: &Value) -> String {
    let mut text = String::new();
    if let Some(description) = info["description"].as_str() {
        text.push_str(&format!("{}\n\n", line(description)));
    }
    text.push_str(&format!("Usage: iii trigger {} [OPTIONS] [key=value]...\n\n", line(function)));
    let schema = ["request_schema", "request_format"].iter().map(|key| &info[*key]).find(|schema| schema.is_object());
    match schema.map(rows) {
        Some(rows) if !rows.is_empty() => text.push_str(&table(&rows)),
        Some(_) => text.push_str("It takes no fields.\n"),
        None => text.push_str("Its worker published no request schema.\n"),
    }
    let help = static_help();
    text.push_str(help.find("\nOptions:").map_or("", |options| &help[options..]));
    text
}

/// Name, type, required, description of each top-level property.
fn rows(schema: &Value) -> Vec<[String; 4]> {
    let root = schema;
    let schema = resolve(root, root, &mut MAX_PARTS.clone());
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let required: BTreeSet<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    properties
        .iter()
        .map(|(name, property)| {
            let needed = if required.contains(name.as_str()) { "yes" } else { "no" };
            let mut parts = MAX_PARTS;
            let kind = type_of(property, root, &mut parts);
            let resolved = resolve(property, root, &mut parts);
            let description = [property, resolved].into_iter().find_map(|part| part["description"].as_str());
            [line(name), line(&kind), needed.to_owned(), line(description.unwrap_or(""))]
        })
        .collect()
}

/// What a reference within the schema stands for; `parts` is counted down.
fn resolve<'a>(mut part: &'a Value, root: &'a Value, parts: &mut u32) -> &'a Value {
    while let Some(path) = part["$ref"].as_str() {
        let target = path.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        let (Some(target), Some(left)) = (target, parts.checked_sub(1)) else { return &Value::Null };
        (part, *parts) = (target, left);
    }
    part
}

/// `string`, `string|null`, `array<T>`, or `any`.
fn type_of(part: &Value, root: &Value, parts: &mut u32) -> String {
    let any = || "any".to_owned();
    let Some(left) = parts.checked_sub(1) else { return any() };
    *parts = left;
    let part = resolve(part, root, parts);
    // One that all others are added to is how some generators write a reference with a description.
    if let Some([only]) = part["allOf"].as_array().map(Vec::as_slice)
        && part["type"].is_null()
    {
        return type_of(only, root, parts);
    }
    let choices = part["anyOf"].as_array().or_else(|| part["oneOf"].as_array());
    let names: Vec<String> = match (&part["type"], choices) {
        (Value::String(name), _) => vec![named(name, part, root, parts)],
        (Value::Array(names), _) => {
            names.iter().filter_map(Value::as_str).map(|name| named(name, part, root, parts)).collect()
        }
        (_, Some(choices)) => {
            choices.iter().take(MAX_PARTS as usize).map(|choice| type_of(choice, root, parts)).collect()
        }
        _ => Vec::new(),
    };
    let mut distinct: Vec<&str> = Vec::new();
    for name in names.iter().take(MAX_PARTS as usize).flat_map(|name| split(name)) {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    if distinct.is_empty() || distinct.contains(&"any") { any() } else { distinct.join("|") }
}

/// The choices of a type; what stands between angle brackets is one of them.
fn split(name: &str) -> Vec<&str> {
    if name.contains('<') { vec![name] } else { name.split('|').collect() }
}

fn named(name: &str, part: &Value, root: &Value, parts: &mut u32) -> String {
    match name {
        "array" if part["items"].is_object() => format!("array<{}>", type_of(&part["items"], root, parts)),
        name => name.to_owned(),
    }
}

fn table(rows: &[[String; 4]]) -> String {
    let heads = ["name", "type", "required", "description"].map(str::to_owned);
    let all: Vec<&[String; 4]> = std::iter::once(&heads).chain(rows).collect();
    let width =
        |column: usize| all.iter().map(move |row| row[column].chars().count()).filter(|width| *width <= MAX_COLUMN);
    let [first, second, third] = [0, 1, 2].map(|column| width(column).max().unwrap_or(0));
    all.iter()
        .map(|[name, kind, needed, description]| {
            format!("  {name:first$}  {kind:second$}  {needed:third$}  {description}").trim_end().to_owned() + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_becomes_a_table_and_hostile_text_stays_in_its_cell() {
        let info = json!({
            "description": "Quotes\u{1b}[2J a price",
            "request_schema": {
                "required": ["sku"],
                "properties": {
                    "sku": { "type": "string", "description": "Which\none\u{202e}\tof\u{2028}them" },
                    "t\u{1b}[31mx\u{9b}": { "type": "str\u{202e}ing" },
                },
            },
        });
        let text = describe("orders::quote", &info);
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{2028}', '\t']), "{text}");
        for row in ["  sku     string  yes       Which one ofthem\n", "  t[31mx  string  no\n", "--timeout-ms"] {
            assert!(text.contains(row), "{row:?} is not in\n{text}");
        }
        assert!(describe("a::b", &json!({})).contains("no request schema"));
    }

    #[track_caller]
    fn check(property: &Value, expected: &str) {
        let root = json!({
            "$defs": {
                "Tag": { "type": "string" },
                "Circle": { "$ref": "#/$defs/Circle" },
                "Tree": { "anyOf": [{ "$ref": "#/$defs/Tree" }, { "$ref": "#/$defs/Tree" }, { "type": "null" }] },
                "Deep": { "type": "array", "items": { "$ref": "#/$defs/Deep" } },
            },
        });
        assert_eq!(type_of(property, &root, &mut MAX_PARTS.clone()), expected, "{property}");
    }

    #[test]
    fn a_type_is_named_as_people_write_it() {
        check(&json!({ "type": "string" }), "string");
        check(&json!({ "type": ["integer", "null"] }), "integer|null");
        check(&json!({ "type": "array" }), "array");
        check(&json!({ "type": "array", "items": { "$ref": "#/$defs/Tag" } }), "array<string>");
        check(&json!({ "type": ["array", "null"], "items": { "type": "number" } }), "array<number>|null");
        check(&json!({ "type": "array", "items": { "type": ["a", "b"] } }), "array<a|b>");
        check(&json!({ "anyOf": [{ "type": "string" }, { "type": ["string", "null"] }] }), "string|null");
        check(&json!({ "oneOf": [{ "$ref": "#/$defs/Tag" }, { "type": "array", "items": {} }] }), "string|array<any>");
        check(&json!({ "allOf": [{ "$ref": "#/$defs/Tag" }], "description": "x" }), "string");
    }

    #[test]
    fn what_has_no_name_is_any() {
        for property in [
            json!({}),
            json!(true),
            json!(null),
            json!({ "enum": ["a"] }),
            json!({ "type": 7 }),
            json!({ "type": [] }),
            json!({ "$ref": "#/$defs/None" }),
            json!({ "$ref": "other.json#/a" }),
            json!({ "$ref": "#/$defs/Circle" }),
            json!({ "$ref": "#/$defs/Tree" }),
            json!({ "anyOf": [{ "type": "string" }, {}] }),
            json!({ "allOf": [{ "type": "string" }, { "type": "null" }] }),
        ] {
            check(&property, "any");
        }
    }

    #[test]
    fn a_hostile_schema_costs_little() {
        let deep = type_of(&json!({ "$ref": "#" }), &json!({ "type": "array", "items": { "$ref": "#" } }), &mut 64);
        assert!(deep.len() < 1000, "{deep}");
        let wide: Vec<Value> = (0..10_000).map(|_| json!({ "$ref": "#" })).collect();
        assert_eq!(type_of(&json!({ "$ref": "#" }), &json!({ "anyOf": wide }), &mut MAX_PARTS.clone()), "any");
        let rows = ["x".repeat(1 << 20), "y".into()].map(|name| [name, "a".into(), "no".into(), String::new()]);
        assert!(table(&rows).contains("\n  y     a     no\n"));
    }

    #[test]
    fn fields_behind_a_reference_are_found_with_their_descriptions() {
        let schema = json!({
            "$ref": "#/$defs/Order",
            "$defs": {
                "Order": { "properties": { "sku": { "$ref": "#/$defs/Sku" } }, "required": ["sku"] },
                "Sku": { "type": "string", "description": "A number" },
            },
        });
        assert_eq!(rows(&schema), [["sku", "string", "yes", "A number"].map(str::to_owned)]);
    }
}
