//! `iii console` and `iii cloud`: this process becomes another program.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::Outcome;
use crate::arguments::Delegated;
use crate::commands::update_check;
use crate::failure::Failure;
use crate::programs::{Target, find};

/// Returns only if that failed. Nothing is installed on the way: that is asked for with `iii update`.
pub(crate) async fn become_program(target: Target, arguments: &Delegated) -> Outcome {
    let name = target.program();
    let Some(program) = find(name) else {
        return Err(Failure::new(format!("{name} is neither in ~/.local/bin nor in PATH"))
            .hint(format!("`iii update {}` installs it", target.name())));
    };
    update_check::announce().await;
    let error = Command::new(&program).args(&arguments.arguments).exec();
    Err(Failure::new(format!("could not start {}: {error}", program.display()))
        .hint(format!("`iii update {}` installs it again", target.name())))
}
