//! Patterns of files, and the folders in which something can match them.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use notify::RecursiveMode;

/// The files that are watched.
#[derive(Debug)]
pub(crate) struct Globs {
    set: GlobSet,
    folders: BTreeMap<PathBuf, RecursiveMode>,
}

impl Globs {
    /// Patterns are relative to `root`.
    pub(crate) fn new(patterns: &[String], root: &Path) -> Result<Self, globset::Error> {
        let mut set = GlobSetBuilder::new();
        let mut folders = BTreeMap::new();
        for pattern in patterns {
            let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
            let whole = match Path::new(pattern).is_absolute() {
                true => pattern.to_owned(),
                false => format!("{}/{pattern}", globset::escape(&root.to_string_lossy()).trim_end_matches('/')),
            };
            set.add(GlobBuilder::new(&whole).literal_separator(true).build()?);
            let (folder, mode) = folder_of(&root.join(pattern), root);
            let known = folders.entry(folder).or_insert(mode);
            if mode == RecursiveMode::Recursive {
                *known = mode;
            }
        }
        Ok(Self { set: set.build()?, folders })
    }

    pub(crate) fn matches(&self, path: &Path) -> bool {
        self.set.is_match(path)
    }

    pub(crate) fn folders(&self) -> impl Iterator<Item = (&Path, RecursiveMode)> {
        self.folders.iter().map(|(folder, mode)| (folder.as_path(), *mode))
    }
}

/// The deepest folder that is there and holds all that can match, and whether what is below it matters.
fn folder_of(pattern: &Path, root: &Path) -> (PathBuf, RecursiveMode) {
    // What `root` itself is called has no meaning in a pattern.
    let (start, rest) = match pattern.strip_prefix(root) {
        Ok(rest) => (root.to_owned(), rest),
        Err(_) => (PathBuf::new(), pattern),
    };
    let parts: Vec<Component<'_>> = rest.components().collect();
    let is_plain = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{', '\\']);
    let plain = parts.iter().take_while(|part| is_plain(part)).count().min(parts.len().saturating_sub(1));
    let mut folder = parts[..plain].iter().fold(start, |folder, part| folder.join(part));
    let mut below = parts.len() - plain > 1 || parts[plain..].iter().any(|part| part.as_os_str() == "**");
    while !folder.is_dir() && folder.pop() {
        below = true;
    }
    (folder, if below { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(root: &Path, patterns: &[&str]) -> Globs {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Globs::new(&patterns, root).expect("patterns")
    }

    #[test]
    fn patterns_are_relative_to_the_root_and_a_star_ends_at_a_slash() {
        let globs = globs(Path::new("/srv/[app]"), &["src/**/*.{ts,js}", "./*.json", "/etc/hosts"]);
        for path in ["/srv/[app]/src/a.ts", "/srv/[app]/src/deep/down/b.js", "/srv/[app]/package.json", "/etc/hosts"] {
            assert!(globs.matches(Path::new(path)), "{path}");
        }
        for path in ["/srv/[app]/src/a.md", "/srv/[app]/lib/x.json", "/srv/p/src/a.ts", "/srv/[app]/a.ts"] {
            assert!(!globs.matches(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn only_the_folders_are_watched_in_which_something_can_match() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(root.path().join("src/app")).expect("folders");
        let watched = |patterns: &[&str]| -> Vec<(String, RecursiveMode)> {
            let globs = globs(root.path(), patterns);
            let relative = |folder: &Path| folder.strip_prefix(root.path()).expect("below").display().to_string();
            globs.folders().map(|(folder, mode)| (relative(folder), mode)).collect()
        };
        let (all, flat) = (RecursiveMode::Recursive, RecursiveMode::NonRecursive);
        assert_eq!(watched(&["src/**/*.ts"]), [("src".to_owned(), all)]);
        assert_eq!(watched(&["src/app/*.ts", "src/app/**"]), [("src/app".to_owned(), all)]);
        assert_eq!(watched(&["config.json", "*.toml"]), [(String::new(), flat)]);
        assert_eq!(watched(&["gone/*.ts"]), [(String::new(), all)], "the folder may be made later");
    }
}
