//! `iii trigger <function> --help`: what a function takes, from what its worker published.

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::Outcome;
use crate::arguments::{Arguments, Trigger};
use crate::clean::line;
use crate::commands::SHORT;
use crate::connection::Connection;
use crate::failure::Failure;

pub(crate) async fn run(arguments: &Trigger) -> Outcome {
    let Some(function) = &arguments.function_path else {
        print_static();
        return Ok(0);
    };
    let answer = match Connection::open(&arguments.address).await {
        Ok(connection) => {
            let answer = connection.ask("engine::functions::info", &json!({ "function_id": function }), SHORT).await;
            connection.close().await;
            answer
        }
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(info) => {
            print!("{}", describe(function, &info));
            Ok(0)
        }
        Err(failure) if failure.body().is_some_and(|body| body.code == "NOT_FOUND") => {
            Err(Failure::new(format!("there is no function `{}`", line(function)))
                .hint("run `iii trigger engine::functions::list` to see those there are"))
        }
        Err(failure) => {
            eprintln!("warning: nothing is known about `{}`:", line(function));
            failure.print(false);
            print_static();
            Ok(0)
        }
    }
}

fn print_static() {
    let mut command = Arguments::command();
    if let Some(trigger) = command.find_subcommand_mut("trigger") {
        println!("{}", trigger.render_help());
    }
}

fn describe(function: &str, info: &Value) -> String {
    let mut text = String::new();
    if let Some(description) = info["description"].as_str() {
        text.push_str(&format!("{}\n\n", line(description)));
    }
    text.push_str(&format!("Usage: iii trigger {} [key=value]... [--json JSON]\n\n", line(function)));
    let schema = ["request_schema", "request_format"].iter().map(|key| &info[*key]).find(|schema| schema.is_object());
    match schema.map(rows) {
        Some(rows) if !rows.is_empty() => text.push_str(&table(&rows)),
        Some(_) => text.push_str("It takes no fields.\n"),
        None => text.push_str("Its worker published no request schema.\n"),
    }
    text.push_str("\nOptions: --address HOST, --port PORT, --timeout-ms MS; see `iii trigger --help`\n");
    text
}

/// Name, type, required, description of each top-level property.
fn rows(schema: &Value) -> Vec<[String; 4]> {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties
        .map(|(name, property)| {
            let needed = if required.contains(&name.as_str()) { "yes" } else { "no" };
            let description = property["description"].as_str().unwrap_or("");
            [line(name), line(&type_of(property, schema, 4)), needed.to_owned(), line(description)]
        })
        .collect()
}

/// `string`, `string|null`, `array<T>`; references within the schema are followed, at most `depth` of them.
fn type_of(property: &Value, root: &Value, depth: u8) -> String {
    if let Some(target) = property["$ref"].as_str().and_then(|path| path.strip_prefix('#'))
        && depth > 0
        && let Some(target) = root.pointer(target)
    {
        return type_of(target, root, depth - 1);
    }
    if let Some(choices) = property["anyOf"].as_array().or_else(|| property["oneOf"].as_array())
        && depth > 0
    {
        let mut types: Vec<String> = choices.iter().map(|choice| type_of(choice, root, depth - 1)).collect();
        types.dedup();
        return types.join("|");
    }
    match &property["type"] {
        Value::String(name) if name == "array" && depth > 0 && property["items"].is_object() => {
            format!("array<{}>", type_of(&property["items"], root, depth - 1))
        }
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("|"),
        _ => "any".into(),
    }
}

fn table(rows: &[[String; 4]]) -> String {
    let heads = ["name", "type", "required", "description"].map(str::to_owned);
    let all: Vec<&[String; 4]> = std::iter::once(&heads).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second, third) = (width(0), width(1), width(2));
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
                    "sku": { "type": "string", "description": "Which\none\u{202e}" },
                    "tags": { "type": "array", "items": { "$ref": "#/$defs/Tag" } },
                    "qty": { "type": ["integer", "null"] },
                    "x": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
                    "loop": { "$ref": "#/properties/loop" },
                },
                "$defs": { "Tag": { "type": "string" } },
            },
        });
        let text = describe("orders::quote", &info);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
        for row in [
            "sku   string         yes       Which one",
            "tags  array<string>  no",
            "qty   integer|null",
            "x     string|null",
            "loop  any",
        ] {
            assert!(text.contains(row), "{row:?} is not in\n{text}");
        }
        assert!(describe("a::b", &json!({})).contains("no request schema"));
    }
}
