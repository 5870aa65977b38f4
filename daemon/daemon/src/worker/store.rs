//! Which workers there are to be: the entries of config.yaml, edited without disturbing what people wrote there.
//!
//! The edit is textual, one item of the list `workers:` at a time; the result is read again and compared with what
//! was meant before it replaces the file, so an unusual layout is refused and never damaged.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use daemon_api::WorkerError;
use serde_json::Value;

/// What config.yaml says about one worker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) source: EntrySource,
    /// The block `config:`; `null` when there is none.
    pub(crate) config: Value,
}

impl Entry {
    /// As `worker::list` calls it.
    pub(crate) fn kind(&self) -> &'static str {
        match self.source {
            EntrySource::Local(_) => "local",
            EntrySource::Image(_) => "oci",
            EntrySource::Builtin => "builtin",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntrySource {
    Local(PathBuf),
    Image(String),
    /// Part of the engine, or of another version: not ours to run.
    Builtin,
}

/// One project's config.yaml.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    path: PathBuf,
}

impl Store {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn text(&self) -> Result<String, WorkerError> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(self.io(&error)),
        }
    }

    fn io(&self, error: &std::io::Error) -> WorkerError {
        WorkerError::ConfigIo { path: self.path.clone(), reason: error.to_string() }
    }

    fn bad(&self, message: String) -> WorkerError {
        WorkerError::ConfigParse { path: self.path.clone(), message }
    }

    /// Every entry, in the file's order.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, WorkerError> {
        parse(&self.text()?).map_err(|message| self.bad(message))
    }

    pub(crate) fn find(&self, name: &str) -> Result<Option<Entry>, WorkerError> {
        Ok(self.entries()?.into_iter().find(|entry| entry.name == name))
    }

    /// Adds an entry, or replaces the one of that name.
    pub(crate) fn put(&self, entry: &Entry) -> Result<(), WorkerError> {
        let text = self.text()?;
        let mut meant = parse(&text).map_err(|message| self.bad(message))?;
        let text = if meant.iter().any(|other| other.name == entry.name) {
            meant.retain(|other| other.name != entry.name);
            without(&text, &entry.name).map_err(|message| self.bad(message))?
        } else {
            text
        };
        meant.push(entry.clone());
        let edited = with(&text, entry).map_err(|message| self.bad(message))?;
        self.replace(&edited, &meant)
    }

    /// Removes the entries of those names; the file stays as it is when there is none.
    pub(crate) fn remove(&self, names: &[String]) -> Result<(), WorkerError> {
        let mut text = self.text()?;
        let mut meant = parse(&text).map_err(|message| self.bad(message))?;
        let before = meant.len();
        for name in names {
            if meant.iter().any(|entry| entry.name == *name) {
                meant.retain(|entry| entry.name != *name);
                text = without(&text, name).map_err(|message| self.bad(message))?;
            }
        }
        if meant.len() == before { Ok(()) } else { self.replace(&text, &meant) }
    }

    fn replace(&self, text: &str, meant: &[Entry]) -> Result<(), WorkerError> {
        let is = parse(text).map_err(|message| self.bad(format!("its layout cannot be edited: {message}")))?;
        let unlike = |a: &Entry, b: &Entry| a.name != b.name || a.source != b.source || a.config != b.config;
        let same = is.len() == meant.len() && is.iter().all(|entry| meant.iter().any(|other| !unlike(entry, other)));
        if !same {
            return Err(
                self.bad("its layout cannot be edited: write `workers:` as a list with an item per line".into())
            );
        }
        self.write(text).map_err(|error| self.io(&error))
    }

    /// All or nothing, with the old file's mode.
    fn write(&self, text: &str) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mode = fs::metadata(&self.path).map_or(0o644, |metadata| metadata.permissions().mode());
        let mut file = tempfile::Builder::new().prefix(".config-").tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        fs::File::open(folder)?.sync_all()
    }
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let document: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let list = match &document["workers"] {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err("`workers` is not a list".into()),
    };
    list.iter()
        .map(|item| {
            let name = item["name"].as_str().ok_or("an item of `workers` has no `name`")?;
            let source = match (item["worker_path"].as_str(), item["image"].as_str()) {
                (Some(path), _) => EntrySource::Local(path.into()),
                (None, Some(image)) => EntrySource::Image(image.to_owned()),
                (None, None) => EntrySource::Builtin,
            };
            Ok(Entry { name: name.to_owned(), source, config: item["config"].clone() })
        })
        .collect()
}

/// The lines of `workers:`, and of each of its items.
struct Layout<'a> {
    lines: Vec<&'a str>,
    /// Line of `workers:`.
    head: Option<usize>,
    /// First line and line after the last, of each item.
    items: Vec<(usize, usize)>,
    indent: usize,
}

fn layout(text: &str) -> Layout<'_> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let head = lines
        .iter()
        .position(|line| line.trim_end().split('#').next().unwrap_or("").trim_end().starts_with("workers:"));
    let mut layout = Layout { lines, head, items: Vec::new(), indent: 2 };
    let Some(head) = head else { return layout };
    let mut open: Option<usize> = None;
    let mut last_content = head;
    for (number, line) in layout.lines.iter().enumerate().skip(head + 1) {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let is_item = trimmed == "-" || trimmed.starts_with("- ");
        if indent == 0 && !is_item {
            break;
        }
        if is_item && (layout.items.is_empty() && open.is_none() || indent == layout.indent) {
            layout.indent = indent;
            if let Some(start) = open.replace(number) {
                layout.items.push((start, last_content + 1));
            }
        }
        last_content = number;
    }
    if let Some(start) = open {
        layout.items.push((start, last_content + 1));
    }
    layout
}

fn with(text: &str, entry: &Entry) -> Result<String, String> {
    let layout = layout(text);
    let item = |indent: usize| {
        let pad = " ".repeat(indent);
        let mut lines = format!("{pad}- name: {}\n", scalar(&entry.name));
        match &entry.source {
            EntrySource::Local(path) => {
                lines.push_str(&format!("{pad}  worker_path: {}\n", scalar(&path.display().to_string())));
            }
            EntrySource::Image(image) => lines.push_str(&format!("{pad}  image: {}\n", scalar(image))),
            EntrySource::Builtin => {}
        }
        if !entry.config.is_null() {
            // JSON is YAML.
            lines.push_str(&format!("{pad}  config: {}\n", entry.config));
        }
        lines
    };
    let Some(head) = layout.head else {
        let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        return Ok(format!("{text}{gap}workers:\n{}", item(2)));
    };
    let value = layout.lines[head].trim_start_matches("workers:").split(" #").next().unwrap_or("").trim();
    if !matches!(value, "" | "[]" | "~" | "null") {
        return Err("`workers` is written on one line: write it as a list with an item per line".into());
    }
    let mut lines: Vec<String> = layout.lines.iter().map(|line| (*line).to_owned()).collect();
    if layout.items.is_empty() && !value.is_empty() {
        lines[head] = "workers:\n".into();
    }
    let at = layout.items.last().map_or(head + 1, |(_, end)| *end);
    if let Some(before) = lines.get_mut(at - 1)
        && !before.ends_with('\n')
    {
        before.push('\n');
    }
    lines.insert(at, item(layout.indent));
    Ok(lines.concat())
}

fn without(text: &str, name: &str) -> Result<String, String> {
    let layout = layout(text);
    let item = layout.items.iter().position(|(start, end)| {
        let item: String = layout.lines[*start..*end].concat();
        let parsed: Result<Value, _> = serde_saphyr::from_str(&item);
        parsed.is_ok_and(|items| items[0]["name"] == name)
    });
    let Some(item) = item else { return Err(format!("the item of `{name}` cannot be made out")) };
    let (start, end) = layout.items[item];
    let mut lines: Vec<String> = layout.lines.iter().map(|line| (*line).to_owned()).collect();
    lines.drain(start..end);
    if layout.items.len() == 1
        && let Some(head) = layout.head
    {
        // A bare key would be `null`, which reads as an oversight.
        lines[head] = "workers: []\n".into();
    }
    Ok(lines.concat())
}

/// Plain where that is safe, else in double quotes as JSON writes them.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./@".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn local(name: &str) -> Entry {
        Entry { name: name.into(), source: EntrySource::Local(format!("/srv/{name}").into()), config: Value::Null }
    }

    fn names(text: &str) -> Vec<String> {
        parse(text).expect("parsed").into_iter().map(|entry| entry.name).collect()
    }

    #[test]
    fn an_entry_is_added_and_everything_else_stays() {
        for text in [
            "",
            "# mine\n",
            "workers: []\n",
            "workers:\n",
            "workers:   # all of them\n",
            "a: 1\nworkers:\n  - name: x   # first\n    config: {a: 1}\n\n# tail\nz: 2\n",
            "workers:\n- name: \"x\"\n  config:\n    list:\n    - 1\n    - 2\nz: 1",
            "workers:\n    -   name: x\n        image: y",
        ] {
            let before = names(text);
            let edited = with(text, &local("new")).expect("edited");
            assert_eq!(names(&edited), [before.clone(), vec!["new".to_owned()]].concat(), "{text:?} became {edited:?}");
            for line in text.lines().filter(|line| !line.starts_with("workers:")) {
                assert!(edited.contains(line), "{line:?} is gone from {edited:?}");
            }
            let back = without(&edited, "new").expect("removed");
            assert_eq!(names(&back), before, "{back:?}");
        }
    }

    #[test]
    fn a_layout_that_cannot_be_edited_is_refused_and_untouched() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("config.yaml");
        for text in ["workers: [{name: a}]\n", "{workers: [{name: a}]}\n", "workers: 7\n", "workers:\n  - x: 1\n"] {
            fs::write(&path, text).expect("written");
            let error = Store::new(path.clone()).put(&local("b")).expect_err(text);
            assert_eq!(error.code(), "W131", "{text}: {error}");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
    }

    #[test]
    fn an_entry_is_replaced_with_its_configuration_and_the_files_mode() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("config.yaml");
        fs::write(&path, "workers:\n  - name: a\n    image: x\n    config:\n      k: v\n  - name: b\n")
            .expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        let store = Store::new(path.clone());
        let entry = Entry { config: json!({ "k": "v", "n": [1, "x: y # z"] }), ..local("a") };
        store.put(&entry).expect("put");
        assert_eq!(store.find("a").expect("read"), Some(entry));
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        store.remove(&["a".into(), "absent".into()]).expect("removed");
        assert_eq!(names(&fs::read_to_string(&path).expect("read")), ["b"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_edited_as_meant_or_refused(text in "(workers:\n)?(([ ]{0,3}- name: [a-c]\n)|([ ]{2,5}config: \\{\\}\n)|(# x\n)|(z: 1\n)){0,6}") {
            let folder = tempfile::TempDir::new().expect("a folder");
            let path = folder.path().join("config.yaml");
            fs::write(&path, &text).expect("written");
            let before = parse(&text);
            match Store::new(path.clone()).put(&local("new")) {
                Ok(()) => {
                    let mut meant = before.expect("it could be read");
                    meant.push(local("new"));
                    let now = parse(&fs::read_to_string(&path).expect("read")).expect("parsed");
                    proptest::prop_assert_eq!(now.len(), meant.len());
                }
                Err(_) => proptest::prop_assert_eq!(fs::read_to_string(&path).expect("read"), text),
            }
        }
    }
}
