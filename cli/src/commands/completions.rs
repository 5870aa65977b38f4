//! `iii completions`: a script that completes commands in a shell.

use clap::CommandFactory;

use crate::Outcome;
use crate::arguments::{self, Arguments, Shell};

pub(crate) fn run(arguments: &arguments::Completions) -> Outcome {
    let shell = match arguments.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut Arguments::command(), "iii", &mut std::io::stdout().lock());
    Ok(0)
}
