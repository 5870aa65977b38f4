//! `iii update`: programs are replaced by their latest releases.

use std::path::Path;

use jiff::Timestamp;
use semver::Version;
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;
use crate::arguments;
use crate::clean::line;
use crate::failure::Failure;
use crate::install::{InstallError, Staging};
use crate::programs::{Target, installed, platform};
use crate::release::{Index, ReleaseError, Server};
use crate::state::{State, StateError, StateFile};

const INTERRUPTED: u8 = 130;

impl From<ReleaseError> for Failure {
    fn from(error: ReleaseError) -> Self {
        Self::new(error.to_string()).hint_if(error.hint())
    }
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        Self::new(error.to_string()).hint_if(error.hint())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::new(format!("{error}{cause}")).hint_if(error.hint())
    }
}

/// What came of a target.
#[derive(Debug, PartialEq)]
enum Done {
    Updated { from: Option<Version>, to: Version },
    Installed(Version),
    UpToDate(Version),
}

pub(crate) async fn run(arguments: arguments::Update) -> Outcome {
    if arguments.list_targets {
        for target in Target::ALL {
            println!("{}", target.name());
        }
        return Ok(0);
    }
    let wanted = arguments.target.as_deref().map(target_named).transpose()?;
    let url = arguments.url.filter(|url| !url.is_empty()).ok_or_else(|| {
        Failure::new("there is no address of releases: this program comes with none")
            .hint("set III_UPDATE_URL, or pass --url https://HOST/PATH; docs/command-line.md says what has to be there")
    })?;
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|error| Failure::new(format!("signals cannot be received: {error}")))?;
    tokio::select! {
        outcome = update(&url, wanted) => outcome,
        // What was begun is dropped, and with it the unfinished download.
        _ = interrupt.recv() => Ok(INTERRUPTED),
    }
}

fn target_named(text: &str) -> Result<Target, Failure> {
    Target::of(text).ok_or_else(|| {
        Failure::new(format!("there is no target `{}`", line(text))).hint("`iii update --list-targets` lists them")
    })
}

async fn update(url: &str, wanted: Option<Target>) -> Outcome {
    let file = StateFile::of_user()?;
    let _only_one = file.lock()?;
    let mut state = file.read()?;
    let server = Server::at(url)?;
    let index = server.index().await?;
    state.note_check(Timestamp::now());
    file.write(&state)?;
    let targets = wanted.map_or_else(installed, |target| vec![target]);
    let mut failed = false;
    for target in targets {
        eprintln!("checking {}", target.program());
        match update_one(target, &server, &index, &mut state, &file).await {
            Ok(done) => eprintln!("{}", describe(target, &done)),
            Err(failure) => {
                failure.print(false);
                failed = true;
            }
        }
    }
    Ok(u8::from(failed))
}

async fn update_one(
    target: Target,
    server: &Server,
    index: &Index,
    state: &mut State,
    file: &StateFile,
) -> Result<Done, Failure> {
    let folder = target.folder()?;
    let release = index.release(target.program(), &platform())?;
    let there = folder.join(target.program()).is_file();
    let current = current_version(target, there, state);
    if let Some(current) = current.as_ref().filter(|current| **current >= release.version) {
        return Ok(Done::UpToDate(current.clone()));
    }
    let staging = Staging::in_folder(&folder)?;
    let mut archive = staging.archive()?;
    server.download(&release, &mut archive).await?;
    staging.install(archive, target.files())?;
    if target != Target::Itself {
        state.note_installed(target.program(), release.version.clone(), release.archive, Timestamp::now());
        file.write(state)?;
    }
    Ok(if there { Done::Updated { from: current, to: release.version } } else { Done::Installed(release.version) })
}

/// `None` where it is absent, or was put there by somebody else.
pub(crate) fn current_version(target: Target, there: bool, state: &State) -> Option<Version> {
    if target == Target::Itself {
        return Version::parse(env!("CARGO_PKG_VERSION")).ok();
    }
    state.binaries.get(target.program()).filter(|_| there).map(|installed| installed.version.clone())
}

fn describe(target: Target, done: &Done) -> String {
    let program = target.program();
    match done {
        Done::Updated { from: Some(from), to } => format!("{program}: updated {from} → {to}"),
        Done::Updated { from: None, to } => format!("{program}: updated unknown version → {to}"),
        Done::Installed(version) => format!("{program}: installed v{version} in {}", shown_folder(target)),
        Done::UpToDate(version) => format!("{program}: already up to date ({version})"),
    }
}

fn shown_folder(target: Target) -> String {
    target.folder().as_deref().unwrap_or(Path::new("")).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_target_points_to_the_list() {
        assert_eq!(target_named("cloud").unwrap(), Target::Cloud);
        let failure = target_named("\u{1b}[2Jx").unwrap_err();
        assert_eq!(failure.status(), 1);
        assert!(format!("{failure:?}").contains("--list-targets"), "{failure:?}");
    }

    #[test]
    fn a_program_that_is_gone_has_no_version() {
        let mut state = State::default();
        state.note_installed("iii-cloud", Version::new(1, 0, 0), "a".into(), Timestamp::UNIX_EPOCH);
        assert_eq!(current_version(Target::Cloud, true, &state), Some(Version::new(1, 0, 0)));
        assert_eq!(current_version(Target::Cloud, false, &state), None);
        assert_eq!(current_version(Target::Console, true, &state), None);
        assert!(current_version(Target::Itself, true, &state).is_some());
    }
}
