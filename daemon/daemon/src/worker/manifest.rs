//! `iii.worker.yaml`: read, checked, explained.
//!
//! Pure: text in, [`Reading`] out. Installing and validating read a manifest here and nowhere else, so what one
//! accepts the other does too. The rules are the original's (0.19 line), the words are ours.

use std::collections::{BTreeMap, BTreeSet};

use daemon_api::worker::Verdict;
use serde_json::{Map, Value};

/// The file's name in a worker's folder.
pub(crate) const FILE: &str = "iii.worker.yaml";

/// Longest manifest, in bytes: what is read into memory before it is understood.
pub(crate) const MAX_BYTES: u64 = 65_536;

/// Size of a VM that nothing is said about.
pub(crate) const DEFAULT_CPUS: u32 = 2;
pub(crate) const DEFAULT_MEMORY_MIB: u32 = 2048;
const MAX_NAME: usize = 128;

/// What a manifest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) name: Option<String>,
    pub(crate) base_image: Option<String>,
    pub(crate) setup: String,
    /// `None`: the key is absent; an empty one says that there is nothing to install.
    pub(crate) install: Option<String>,
    pub(crate) start: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// The deprecated `runtime.kind` or `language`, for what is inferred.
    pub(crate) kind: Option<String>,
}

/// A manifest and what there is to say about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    pub(crate) manifest: Option<Manifest>,
    pub(crate) verdict: Verdict,
}

const TOP: [&str; 7] = ["name", "description", "runtime", "scripts", "env", "dependencies", "resources"];
const RUNTIME: [&str; 1] = ["base_image"];
const SCRIPTS: [&str; 3] = ["setup", "install", "start"];
const RESOURCES: [&str; 2] = ["cpus", "memory"];

/// Still honoured or at least tolerated; each with what to write instead.
const DEPRECATED: [(&str, &str); 7] = [
    ("runtime.kind", "name `runtime.base_image` and write the scripts out"),
    ("runtime.language", "name `runtime.base_image` and write the scripts out"),
    ("language", "name `runtime.base_image` and write the scripts out"),
    ("runtime.package_manager", "put the command into `scripts.install`"),
    ("runtime.entry", "put the command into `scripts.start`"),
    ("entry", "put the command into `scripts.start`"),
    ("config", "write it as `config:` under the worker in config.yaml"),
];

/// Known to later versions: tolerated without a word.
const LATER: [&str; 3] = ["iii", "deploy", "manifest"];

/// Letters, digits, `-`, `_`, `.`; no leading dot, no `..`.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("a worker's name has 1 to {MAX_NAME} characters"));
    }
    if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        return Err(format!("{bad:?} is not allowed: use letters, digits, `-`, `_` and `.`"));
    }
    if name.starts_with('.') || name.contains("..") {
        return Err("it must not start with a dot or contain `..`".into());
    }
    Ok(())
}

/// Reads a manifest; `origin` names it in messages.
pub(crate) fn read(text: &str, origin: &str) -> Reading {
    let mut reader = Reader::default();
    if text.len() as u64 > MAX_BYTES {
        reader.error(too_large(origin, text.len() as u64));
        return reader.finish(None);
    }
    let document: Value = match serde_saphyr::from_str(text) {
        Ok(document) => document,
        Err(error) => {
            reader.error(format!("{origin} is not valid YAML: {error}"));
            return reader.finish(None);
        }
    };
    let manifest = match &document {
        Value::Null => {
            reader.error("the manifest is empty: it needs at least `name` and `scripts.start`".into());
            None
        }
        Value::Object(top) => Some(reader.manifest(top, origin)),
        other => {
            reader.shape.push(format!("the top level must be a mapping, got {}", kind_of(other)));
            None
        }
    };
    reader.finish(manifest)
}

/// A failure before anything could be read.
pub(crate) fn unreadable(message: String) -> Reading {
    let mut reader = Reader::default();
    reader.error(message);
    reader.finish(None)
}

pub(crate) fn too_large(origin: &str, bytes: u64) -> String {
    format!("{origin} is {bytes} bytes; {FILE} is capped at {MAX_BYTES} bytes")
}

#[derive(Default)]
struct Reader {
    errors: Vec<String>,
    shape: Vec<String>,
    unknown: BTreeSet<String>,
    deprecated: BTreeSet<String>,
    warnings: Vec<String>,
}

impl Reader {
    fn error(&mut self, message: String) {
        self.errors.push(message);
    }

    fn finish(mut self, manifest: Option<Manifest>) -> Reading {
        if !self.shape.is_empty() {
            self.errors.insert(0, format!("invalid manifest shape: {}", self.shape.join("; ")));
        }
        for (key, instead) in DEPRECATED {
            if self.deprecated.contains(key) && std::env::var_os("III_NO_DEPRECATION_WARN").is_none() {
                let warning = format!("`{key}` is deprecated and will be removed in a future version: {instead}");
                self.warnings.push(warning);
            }
        }
        let valid = self.errors.is_empty() && manifest.is_some();
        let verdict = Verdict {
            valid,
            name: manifest.as_ref().and_then(|manifest| manifest.name.clone()),
            errors: self.errors,
            unknown_keys: self.unknown.into_iter().collect(),
            deprecated_keys: self.deprecated.into_iter().collect(),
            warnings: self.warnings,
        };
        Reading { manifest: manifest.filter(|_| valid), verdict }
    }

    fn manifest(&mut self, top: &Map<String, Value>, origin: &str) -> Manifest {
        self.keys("", top, &TOP);
        let empty = Map::new();
        let runtime = self.section(top, "runtime").unwrap_or_else(|| empty.clone());
        let scripts = self.section(top, "scripts").unwrap_or_else(|| empty.clone());
        let resources = self.section(top, "resources").unwrap_or(empty);
        self.keys("runtime.", &runtime, &RUNTIME);
        self.keys("scripts.", &scripts, &SCRIPTS);
        self.keys("resources.", &resources, &RESOURCES);
        if !self.unknown.is_empty() {
            let keys: Vec<_> = self.unknown.iter().cloned().collect();
            self.error(format!(
                "unknown key(s) in {origin}: [{}]. Supported fields are: name, description, runtime.base_image, \
                 scripts.(setup|install|start), env, dependencies, resources.(cpus|memory).",
                keys.join(", ")
            ));
        }
        let name = self.text("name", top.get("name"));
        if let Some(reason) = name.as_deref().and_then(|name| check_name(name).err()) {
            self.error(format!("`name`: {reason}"));
        }
        self.text("description", top.get("description"));
        let start = self.script(&scripts, "start");
        let entry = self.text("runtime.entry", runtime.get("entry")).or_else(|| self.text("entry", top.get("entry")));
        let kind = self
            .text("runtime.kind", runtime.get("kind"))
            .or_else(|| self.text("runtime.language", runtime.get("language")))
            .or_else(|| self.text("language", top.get("language")));
        let install = self.script(&scripts, "install");
        if install.is_none() {
            let warning = "`scripts.install` is absent: nothing is installed; say `install: \"\"` if that is meant";
            self.warnings.push(warning.into());
        }
        self.dependencies(top, name.as_deref());
        Manifest {
            base_image: self.base_image(&runtime),
            setup: self.script(&scripts, "setup").unwrap_or_default(),
            install,
            start: start.filter(|start| !start.trim().is_empty()).or(entry),
            env: self.env(top),
            cpus: self.amount(&resources, "cpus", DEFAULT_CPUS),
            memory_mib: self.amount(&resources, "memory", DEFAULT_MEMORY_MIB),
            kind,
            name,
        }
    }

    fn keys(&mut self, prefix: &str, map: &Map<String, Value>, known: &[&str]) {
        let is_known = |key: &str| known.contains(&key) || (prefix.is_empty() && LATER.contains(&key));
        for key in map.keys() {
            let path = format!("{prefix}{key}");
            if DEPRECATED.iter().any(|(deprecated, _)| *deprecated == path) {
                self.deprecated.insert(path);
            } else if !is_known(key) {
                self.unknown.insert(clean(&path));
            }
        }
    }

    fn section(&mut self, top: &Map<String, Value>, key: &str) -> Option<Map<String, Value>> {
        match top.get(key)? {
            Value::Null => None,
            Value::Object(map) => Some(map.clone()),
            other => {
                let got = kind_of(other);
                self.shape.push(format!("`{key}` must be a mapping of indented `key: value` fields, got {got}"));
                None
            }
        }
    }

    fn text(&mut self, key: &str, value: Option<&Value>) -> Option<String> {
        match value? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            Value::Object(_) if key == "config" => None,
            other => {
                self.shape.push(format!("`{key}` must be text, got {}", kind_of(other)));
                None
            }
        }
    }

    fn script(&mut self, scripts: &Map<String, Value>, key: &str) -> Option<String> {
        if matches!(scripts.get(key), Some(Value::Array(_))) {
            let message = "must be one command, got a list: write it as one line, its parts joined with `&&`";
            self.shape.push(format!("`scripts.{key}` {message}"));
            return None;
        }
        self.text(&format!("scripts.{key}"), scripts.get(key))
    }

    fn env(&mut self, top: &Map<String, Value>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for (name, value) in self.section(top, "env").unwrap_or_default() {
            let key = clean(&name);
            if name.is_empty() || name.contains(['=', '\0']) {
                self.shape.push(format!("`env` has a key that no variable can have: {key:?}"));
                continue;
            }
            match value {
                Value::String(text) if !text.contains('\0') => {
                    // The launcher owns these.
                    if name != "III_URL" && name != "III_ENGINE_URL" {
                        env.insert(name, text);
                    }
                }
                Value::Null => self.shape.push(format!("`env.{key}` has no value: write `{key}: \"\"`")),
                Value::Number(_) | Value::Bool(_) => {
                    self.shape.push(format!("`env.{key}` must be text: write it in quotes, `{key}: \"{value}\"`"));
                }
                other => self.shape.push(format!("`env.{key}` must be text, got {}", kind_of(&other))),
            }
        }
        env
    }

    fn amount(&mut self, resources: &Map<String, Value>, key: &str, default: u32) -> u32 {
        let value = match resources.get(key) {
            None | Some(Value::Null) => return default,
            Some(value) => value,
        };
        match value.as_u64() {
            Some(0) => self.shape.push(format!("`resources.{key}` must be at least 1")),
            Some(number) => match u32::try_from(number) {
                Ok(number) => return number,
                Err(_) => self.shape.push(format!("`resources.{key}` is {number}, above 4294967295")),
            },
            None => self.shape.push(format!("`resources.{key}` must be a non-negative integer, got `{value}`")),
        }
        default
    }

    fn base_image(&mut self, runtime: &Map<String, Value>) -> Option<String> {
        let image = self.text("runtime.base_image", runtime.get("base_image"))?;
        let letters = |c: char| c.is_ascii_alphanumeric() || "._-/:@+".contains(c);
        if image.is_empty() || image.len() > 512 || !image.chars().all(letters) {
            let warning = format!("`runtime.base_image` {:?} is no image's name: the default is used", clean(&image));
            self.warnings.push(warning);
            return None;
        }
        Some(image)
    }

    fn dependencies(&mut self, top: &Map<String, Value>, own: Option<&str>) {
        for (name, range) in self.section(top, "dependencies").unwrap_or_default() {
            let key = clean(&name);
            if let Err(reason) = check_name(&name) {
                self.error(format!("dependency {key:?}: {reason}"));
            }
            if own == Some(name.as_str()) {
                self.error(format!("`{key}` depends on itself"));
            }
            match range.as_str() {
                Some(range) if semver::VersionReq::parse(range).is_ok() => {
                    let warning = format!("dependency `{key}` is not resolved by this version: add it by hand");
                    self.warnings.push(warning);
                }
                Some(range) => self.error(format!("dependency `{key}`: {:?} is no version range", clean(range))),
                None => self.shape.push(format!("`dependencies.{key}` must be a version range in quotes")),
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// Without characters that move a cursor or turn text around.
pub(crate) fn clean(text: &str) -> String {
    let hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    text.chars().filter(|c| !c.is_control() && !hidden(*c)).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> String {
        let reading = read(text, "m.yaml");
        assert_eq!(reading.manifest.is_some(), reading.verdict.valid);
        reading.verdict.errors.join("\n")
    }

    #[test]
    fn a_whole_manifest_is_read() {
        let text = "name: a\nruntime: {base_image: python}\nscripts: {setup: s, install: i, start: r}\nenv: {A: b, III_URL: x}\nresources: {cpus: 1, memory: 512}\n";
        let reading = read(text, "m.yaml");
        assert_eq!(reading.verdict.errors, Vec::<String>::new());
        assert_eq!(reading.verdict.warnings, Vec::<String>::new());
        let manifest = reading.manifest.expect("valid");
        assert_eq!((manifest.cpus, manifest.memory_mib, manifest.start.as_deref()), (1, 512, Some("r")));
        assert_eq!(manifest.env, [("A".to_owned(), "b".to_owned())].into());
    }

    #[test]
    fn all_typos_come_in_one_sorted_message() {
        let reading = read("name: a\nscrpits: 1\nruntimee: 2\nscripts: {strat: x}\n", "m.yaml");
        assert_eq!(reading.verdict.unknown_keys, ["runtimee", "scripts.strat", "scrpits"]);
        assert!(reading.verdict.errors[0].contains("[runtimee, scripts.strat, scrpits]"), "{:?}", reading.verdict);
    }

    #[test]
    fn wrong_shapes_are_explained_in_plain_words() {
        for (text, words) in [
            ("runtime: node", "`runtime` must be a mapping of indented `key: value` fields, got a string"),
            ("scripts: {start: [a, b]}", "&&"),
            ("env: {A: 1}", "quotes"),
            ("env: {A: null}", "write `A: \"\"`"),
            ("resources: {cpus: -1}", "non-negative integer"),
            ("resources: {cpus: 4294967296}", "above 4294967295"),
            ("resources: {memory: 0}", "at least 1"),
            ("- a", "top level must be a mapping"),
            ("", "the manifest is empty"),
            ("name: a\nname: b", "not valid YAML"),
            ("name: a/b", "not allowed"),
            ("name: ..", "dot"),
            ("name: a\ndependencies: {a: '1'}", "depends on itself"),
            ("dependencies: {b: '>>1'}", "no version range"),
        ] {
            let said = errors(text);
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn deprecated_keys_are_honoured_and_named() {
        let reading = read("name: a\nruntime: {kind: node, entry: node x.js}\nconfig: {a: 1}\n", "m.yaml");
        assert_eq!(reading.verdict.deprecated_keys, ["config", "runtime.entry", "runtime.kind"]);
        let manifest = reading.manifest.expect("valid");
        assert_eq!(manifest.start.as_deref(), Some("node x.js"));
        assert_eq!(manifest.kind.as_deref(), Some("node"));
    }

    #[test]
    fn aliases_do_not_multiply_and_size_is_capped() {
        let mut bomb = String::from("name: a\nenv:\n  a: &a x\n");
        bomb.push_str("x0: &x0 [a,a,a,a,a,a,a,a,a,a]\n");
        for level in 1..9 {
            let line = vec![format!("*x{}", level - 1); 10].join(",");
            bomb.push_str(&format!("x{level}: &x{level} [{line}]\n"));
        }
        assert!(!read(&bomb, "m.yaml").verdict.valid);
        let large = "#".repeat(65_537);
        assert_eq!(errors(&large), "m.yaml is 65537 bytes; iii.worker.yaml is capped at 65536 bytes");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,300}") {
            let reading = read(&text, "m.yaml");
            proptest::prop_assert_eq!(reading.manifest.is_some(), reading.verdict.valid);
        }
    }
}
