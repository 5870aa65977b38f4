//! A file per command.

mod completions;
mod delegate;
mod doctor;
pub(crate) mod engine;
mod project_docker;
mod project_init;
mod project_template;
mod sandbox;
mod sandbox_files;
mod sandbox_snapshot;
mod trigger;
mod trigger_help;
mod update;
pub(crate) mod update_check;
mod worker_add;
mod worker_exec;
mod worker_logs;
mod worker_status;
mod workers;

use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::arguments::{Command, Project, Sandbox, Worker};
use crate::programs::Target;

/// How long a question that needs no VM may take.
const SHORT: Duration = Duration::from_secs(30);

/// How long something that installs or boots may take.
const LONG: Duration = Duration::from_secs(3600);

pub(crate) async fn run(command: Command) -> Outcome {
    match command {
        Command::Trigger(arguments) => trigger::run(arguments).await,
        Command::Doctor(arguments) => doctor::run(arguments).await,
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Console(arguments) => delegate::become_program(Target::Console, &arguments).await,
        Command::Cloud(arguments) => delegate::become_program(Target::Cloud, &arguments).await,
        Command::Update(arguments) => update::run(arguments).await,
        Command::Project(command) => match command {
            Project::Init(arguments) => project_init::run(&arguments),
            Project::GenerateDocker(arguments) => project_docker::run(&arguments),
        },
        Command::Worker(command) => match command {
            Worker::Add(arguments) => worker_add::run(arguments, false).await,
            Worker::Reinstall(arguments) => worker_add::run(arguments, true).await,
            Worker::Remove(arguments) => workers::remove(arguments).await,
            Worker::Clear(arguments) => workers::clear(arguments).await,
            Worker::List(arguments) => workers::list(arguments).await,
            Worker::Status(arguments) => worker_status::run(arguments).await,
            Worker::Start(arguments) => worker_add::start(arguments).await,
            Worker::Restart(arguments) => worker_add::restart(arguments).await,
            Worker::Stop(arguments) => workers::stop(arguments).await,
            Worker::Logs(arguments) => worker_logs::run(arguments).await,
            Worker::Exec(arguments) => worker_exec::run(arguments).await,
            Worker::Validate(arguments) => workers::validate(arguments).await,
            Worker::Sandbox(command) => match command {
                Sandbox::Create(arguments) => sandbox::create(arguments).await,
                Sandbox::Exec(arguments) => sandbox::exec(arguments).await,
                Sandbox::Run(arguments) => sandbox::run(arguments).await,
                Sandbox::List(arguments) => sandbox::list(arguments).await,
                Sandbox::Stop(arguments) => sandbox::stop(arguments).await,
                Sandbox::Snapshot(arguments) => sandbox_snapshot::snapshot(arguments).await,
                Sandbox::Restore(arguments) => sandbox_snapshot::restore(arguments).await,
                Sandbox::Fork(arguments) => sandbox_snapshot::fork(arguments).await,
                Sandbox::Pause(arguments) => sandbox_snapshot::pause(arguments, false).await,
                Sandbox::Resume(arguments) => sandbox_snapshot::pause(arguments, true).await,
                Sandbox::Snapshots(arguments) => sandbox_snapshot::list(arguments).await,
                Sandbox::DeleteSnapshot(arguments) => sandbox_snapshot::delete(arguments).await,
                Sandbox::Upload(arguments) => sandbox_files::upload(arguments).await,
                Sandbox::Download(arguments) => sandbox_files::download(arguments).await,
            },
        },
    }
}

/// An answer as data.
fn print_json(value: &Value) {
    println!("{value:#}");
}
