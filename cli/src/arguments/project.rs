//! `iii project …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub(crate) enum Project {
    /// Make a folder a project; what is there already is kept.
    Init(Init),
    /// Write a Dockerfile, docker-compose.yml and .env, each where it is absent.
    GenerateDocker(GenerateDocker),
}

#[derive(Args)]
pub(crate) struct Init {
    /// The project's folder, which gives it its name [default: this folder].
    pub(crate) name: Option<PathBuf>,
    /// The project's folder; wins over NAME.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Write the files for Docker too.
    #[arg(long)]
    pub(crate) docker: bool,
    /// Copy the files of this template, a folder in --template-dir.
    #[arg(short, long, value_name = "NAME", requires = "template_dir")]
    pub(crate) template: Option<String>,
    /// Folder of templates; there are none elsewhere.
    #[arg(long, value_name = "DIR")]
    pub(crate) template_dir: Option<PathBuf>,
    /// Take a template that asks for another version.
    #[arg(long)]
    pub(crate) skip_iii: bool,
    /// Permit a folder that is not empty.
    #[arg(long)]
    pub(crate) allow_non_empty: bool,
}

#[derive(Args)]
pub(crate) struct GenerateDocker {
    /// The project's folder [default: this folder].
    #[arg(short, long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Take the files from its folder `docker` instead.
    #[arg(long, value_name = "DIR")]
    pub(crate) template_dir: Option<PathBuf>,
}
