//! A local worker's folder, as a plan: its manifest, with what the files say where the manifest is silent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use daemon_api::worker::Verdict;

use vmm::{MemoryMib, VcpuCount};

use crate::worker::manifest::{self, Manifest, Reading};

/// What a local worker is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) setup: String,
    pub(crate) install: String,
    pub(crate) start: String,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
}

/// A kind of project, told by its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bun,
    Node,
    Rust,
    Python,
}

impl Kind {
    /// By the files in `folder`, the first match.
    fn of(has: impl Fn(&str) -> bool) -> Option<Self> {
        match () {
            () if has("package.json") && (has("bun.lock") || has("bun.lockb")) => Some(Self::Bun),
            () if has("package.json") => Some(Self::Node),
            () if has("Cargo.toml") => Some(Self::Rust),
            () if has("pyproject.toml") || has("requirements.txt") => Some(Self::Python),
            () => None,
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "bun" => Some(Self::Bun),
            "node" | "nodejs" | "javascript" | "typescript" | "js" | "ts" => Some(Self::Node),
            "rust" => Some(Self::Rust),
            "python" => Some(Self::Python),
            _ => None,
        }
    }

    fn image(self) -> &'static str {
        match self {
            Self::Bun => "docker.io/oven/bun:latest",
            Self::Node => "docker.io/iiidev/node:latest",
            Self::Rust => "docker.io/library/rust:slim-bookworm",
            Self::Python => "docker.io/iiidev/python:latest",
        }
    }

    fn install(self) -> &'static str {
        match self {
            Self::Bun => "bun install",
            Self::Node => "npm install",
            Self::Rust => "cargo build --release",
            Self::Python => "python3 -m pip install -e .",
        }
    }

    fn start(self) -> &'static str {
        match self {
            Self::Bun => "bun run dev",
            Self::Node => "npm run dev",
            Self::Rust => "cargo run --release",
            Self::Python => "python3 -m iii",
        }
    }
}

/// Reads the manifest of `folder`, checks it, and completes it.
pub(crate) fn read(folder: &Path) -> (Option<Plan>, Verdict) {
    if !folder.is_dir() {
        let reading = manifest::unreadable(format!("{} is not a directory", folder.display()));
        return (None, reading.verdict);
    }
    let path = folder.join(manifest::FILE);
    let reading = if path.symlink_metadata().is_err() { absent(folder) } else { read_file(&path) };
    complete(reading, folder)
}

/// Reads one manifest by its path, or that of a folder: what `worker::validate` says about it.
pub(crate) fn validate_path(path: &Path) -> Verdict {
    if path.is_dir() {
        return read(path).1;
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    complete(read_file(path), folder).1
}

/// As [`validate_path`], for a text without a folder: the scripts cannot be inferred.
pub(crate) fn validate_text(text: &str) -> Verdict {
    plan(manifest::read(text, manifest::FILE), None, None).1
}

fn complete(reading: Reading, folder: &Path) -> (Option<Plan>, Verdict) {
    let kind = Kind::of(|file| folder.join(file).is_file());
    let name = folder.file_name().and_then(|name| name.to_str());
    plan(reading, kind, name)
}

fn read_file(path: &Path) -> Reading {
    let origin = path.display().to_string();
    match read_capped(path) {
        Ok(Ok(text)) => manifest::read(&text, &origin),
        Ok(Err(bytes)) => manifest::unreadable(manifest::too_large(&origin, bytes)),
        Err(error) => manifest::unreadable(format!("could not read {origin}: {error}")),
    }
}

/// `Ok(Err(length))` for a file above the cap. Anything but a regular file is refused: a pipe has no end.
fn read_capped(path: &Path) -> std::io::Result<Result<String, u64>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    if metadata.len() > manifest::MAX_BYTES {
        return Ok(Err(metadata.len()));
    }
    let mut text = String::new();
    // The file may grow between the two looks.
    let read = file.take(manifest::MAX_BYTES + 1).read_to_string(&mut text)? as u64;
    Ok(if read > manifest::MAX_BYTES { Err(read) } else { Ok(text) })
}

/// No manifest: a project that its files explain is fine.
fn absent(folder: &Path) -> Reading {
    match Kind::of(|file| folder.join(file).is_file()) {
        Some(_) => {
            let text = "{}";
            let mut reading = manifest::read(text, manifest::FILE);
            reading.verdict.warnings = vec![format!("no {}: everything is inferred from the files", manifest::FILE)];
            if let Some(manifest) = &mut reading.manifest {
                manifest.name = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            }
            reading
        }
        None => manifest::unreadable(format!(
            "no project manifest detected in {}: write an {}, see `worker::schema` with function_id `{}`",
            folder.display(),
            manifest::FILE,
            manifest::FILE
        )),
    }
}

fn plan(reading: Reading, found: Option<Kind>, folder: Option<&str>) -> (Option<Plan>, Verdict) {
    let Reading { manifest, mut verdict } = reading;
    let Some(manifest) = manifest else { return (None, verdict) };
    let Manifest { name, base_image, setup, install, start, env, cpus, memory_mib, kind } = manifest;
    let kind = kind.as_deref().and_then(Kind::named).or(found);
    if name.is_none() {
        let example = folder.map(|folder| format!(", such as `name: {folder}`")).unwrap_or_default();
        verdict.errors.push(format!("missing required field `name`{example}"));
    }
    // A folder's name is not always one.
    if let Some(Err(reason)) = name.as_deref().map(manifest::check_name) {
        let problem = format!(
            "`{}` is no worker name: {reason}; write `name: …` in {}",
            name.as_deref().unwrap_or(""),
            manifest::FILE
        );
        verdict.errors.push(problem);
    }
    if let Err(error) = MemoryMib::new(memory_mib) {
        verdict.errors.push(format!("`resources.memory`: {error}"));
    }
    if let Err(error) = VcpuCount::new(cpus) {
        verdict.errors.push(format!("`resources.cpus`: {error}"));
    }
    let inferred = start.is_none();
    let start = start.or_else(|| kind.map(|kind| kind.start().to_owned()));
    if start.is_none() {
        let problem = "no way to start it: write `scripts.start`, the command that runs until the worker ends";
        verdict.errors.push(problem.into());
    }
    // An inferred start needs what the inferred install brings.
    let install = match (install, kind) {
        (Some(install), _) => install,
        (None, Some(kind)) if inferred => kind.install().to_owned(),
        (None, _) => String::new(),
    };
    verdict.valid = verdict.errors.is_empty();
    let image = base_image.unwrap_or_else(|| kind.unwrap_or(Kind::Node).image().to_owned());
    verdict.name = name.clone();
    let plan = name.zip(start).filter(|_| verdict.valid).map(|(name, start)| Plan {
        name,
        image,
        setup,
        install,
        start,
        env,
        cpus,
        memory_mib,
    });
    (plan, verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = TempDir::new().expect("a folder");
        for (name, content) in files {
            fs::write(folder.path().join(name), content).expect("written");
        }
        folder
    }

    #[test]
    fn what_the_manifest_leaves_out_comes_from_the_files() {
        let node = folder(&[("iii.worker.yaml", "name: web"), ("package.json", "{}")]);
        let plan = read(node.path()).0.expect("a plan");
        assert_eq!(
            (plan.image.as_str(), plan.install.as_str(), plan.start.as_str()),
            ("docker.io/iiidev/node:latest", "npm install", "npm run dev")
        );
        let python = folder(&[("iii.worker.yaml", "name: a\nscripts: {start: python3 a.py}"), ("pyproject.toml", "")]);
        let plan = read(python.path()).0.expect("a plan");
        assert_eq!((plan.image.as_str(), plan.install.as_str()), ("docker.io/iiidev/python:latest", ""));
    }

    #[test]
    fn nothing_to_go_by_and_a_missing_name_are_told_apart() {
        let empty = folder(&[]);
        assert!(read(empty.path()).1.errors[0].contains("no project manifest detected"));
        let nameless = folder(&[("iii.worker.yaml", "scripts: {start: x}")]);
        let errors = read(nameless.path()).1.errors;
        assert!(errors[0].contains("missing required field `name`"), "{errors:?}");
        let idle = folder(&[("iii.worker.yaml", "name: a")]);
        assert!(read(idle.path()).1.errors[0].contains("scripts.start"));
    }

    #[test]
    fn what_no_vm_can_be_is_refused_before_anything_is_added() {
        for (resources, word) in [("memory: 64", "resources.memory"), ("cpus: 65", "resources.cpus")] {
            let text = format!("name: a\nscripts: {{start: x}}\nresources: {{{resources}}}");
            let project = folder(&[("iii.worker.yaml", &text)]);
            let errors = read(project.path()).1.errors;
            assert!(errors.len() == 1 && errors[0].contains(word), "{errors:?}");
        }
        let parent = folder(&[]);
        let odd = parent.path().join("my app");
        fs::create_dir(&odd).expect("a folder");
        fs::write(odd.join("package.json"), "{}").expect("written");
        let errors = read(&odd).1.errors;
        assert!(errors[0].contains("`my app` is no worker name"), "{errors:?}");
    }

    #[test]
    fn a_pipe_or_a_huge_file_in_place_of_a_manifest_is_refused_at_once() {
        let pipe = folder(&[]);
        nix::unistd::mkfifo(&pipe.path().join("iii.worker.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(read(pipe.path()).1.errors[0].contains("not a regular file"));
        let huge = folder(&[]);
        fs::File::create(huge.path().join("iii.worker.yaml")).and_then(|file| file.set_len(1 << 40)).expect("a hole");
        assert!(read(huge.path()).1.errors[0].contains("capped at 65536"));
    }
}
