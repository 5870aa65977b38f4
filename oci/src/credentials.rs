//! Credentials from Docker's configuration file and its helpers, where `docker login` puts them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::PullError;

/// A helper asks a key ring, perhaps a person.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A user name and a password, or token in its place.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:****", self.user)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
}

/// What a helper answers to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The credentials for `registry` in the configuration file `path`; `None` where it names none.
pub(crate) async fn find(path: &Path, registry: &str) -> Result<Option<Credentials>, PullError> {
    let failed =
        |reason: String| PullError::Credentials { registry: registry.to_owned(), path: path.to_owned(), reason };
    let raw = match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => return Err(failed("the file is too large".into())),
        Ok(_) => std::fs::read(path).map_err(|error| failed(error.to_string()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let config: DockerConfig = serde_json::from_slice(&raw).map_err(|error| failed(error.to_string()))?;
    let key = |known: &&String| host_of(known) == host_of(registry);
    if let Some((server, helper)) = config.cred_helpers.iter().find(|(server, _)| key(server)) {
        return ask(helper, server).await.map_err(failed);
    }
    let entry = config.auths.iter().find(|(server, _)| key(server));
    if let Some(found) = entry.map(|(_, auth)| auth.read()).transpose().map_err(failed)?.flatten() {
        return Ok(Some(found));
    }
    match config.creds_store.filter(|helper| !helper.is_empty()) {
        Some(helper) => {
            let server = entry.map_or_else(|| server_name(registry), |(server, _)| server.clone());
            ask(&helper, &server).await.map_err(failed)
        }
        None => Ok(None),
    }
}

/// Where Docker keeps its configuration.
pub(crate) fn default_path() -> Option<PathBuf> {
    let named = std::env::var_os("DOCKER_CONFIG").filter(|directory| !directory.is_empty()).map(PathBuf::from);
    let directory = named.or_else(|| std::env::home_dir().map(|home| home.join(".docker")))?;
    Some(directory.join("config.json"))
}

impl Auth {
    fn read(&self) -> Result<Option<Credentials>, String> {
        if !self.auth.is_empty() {
            let plain = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).ok();
            let plain = plain.and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = plain.as_deref().and_then(|plain| plain.split_once(':'));
            let (user, secret) = pair.ok_or("an `auth` entry is not base64 of user:password")?;
            return Ok(Some(Credentials { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }));
        }
        let stated = !self.username.is_empty();
        Ok(stated.then(|| Credentials { user: self.username.clone(), secret: self.password.clone() }))
    }
}

/// Runs `docker-credential-<helper> get`.
async fn ask(helper: &str, server: &str) -> Result<Option<Credentials>, String> {
    if helper.contains('/') {
        return Err(format!("`{helper}` is not the name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let conversation = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(server.as_bytes()).await?;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_FILE_BYTES).read_to_end(&mut answer).await?;
        }
        child.wait().await.map(|status| (status, answer))
    };
    let (status, answer) = match tokio::time::timeout(HELPER_DEADLINE, conversation).await {
        Ok(ended) => ended.map_err(failed)?,
        Err(_) => return Err(format!("{program} gave no answer in {} s", HELPER_DEADLINE.as_secs())),
    };
    if !status.success() {
        // The way helpers say that they know nothing about a server.
        return if String::from_utf8_lossy(&answer).contains("not found") {
            Ok(None)
        } else {
            Err(format!("{program} failed with {status}"))
        };
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| format!("{program}: {error}"))?;
    if answer.username == "<token>" {
        return Err(format!("{program} has an identity token, which cannot be used; log in with a password"));
    }
    Ok(Some(Credentials { user: answer.username, secret: answer.secret }))
}

/// Keys are written as hosts and as addresses: `ghcr.io`, `https://index.docker.io/v1/`.
fn host_of(server: &str) -> &str {
    let bare = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    match bare.split('/').next().unwrap_or(bare) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// How `docker login` calls a registry.
fn server_name(registry: &str) -> String {
    match registry {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        registry => registry.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(config: &str, registry: &str) -> Result<Option<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let found = find(&path, registry).await.map_err(|error| error.to_string())?;
        Ok(found.map(|found| format!("{}/{}", found.user, found.secret)))
    }

    #[tokio::test]
    async fn entries_are_found_by_host_and_secrets_are_not_printed() {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YWRhOmE6Yg=="},"r:5000":{"username":"u","password":"p"}}}"#;
        assert_eq!(check(config, "docker.io").await, Ok(Some("ada/a:b".into())));
        assert_eq!(check(config, "r:5000").await, Ok(Some("u/p".into())));
        assert_eq!(check(config, "r").await, Ok(None));
        let shown = format!("{:?}", Credentials { user: "ada".into(), secret: "lovelace".into() });
        assert_eq!(shown, "ada:****");
    }

    #[tokio::test]
    async fn damaged_files_and_missing_helpers_are_named() {
        assert!(check("{", "r").await.unwrap_err().contains("config.json"));
        assert!(check(r#"{"auths":{"r":{"auth":"!"}}}"#, "r").await.unwrap_err().contains("base64"));
        let missing = check(r#"{"credHelpers":{"r":"no-such-helper"}}"#, "r").await.unwrap_err();
        assert!(missing.contains("docker-credential-no-such-helper"), "{missing}");
    }
}
