//! Chores of developers and of `make`: the guest kit's parts, and checks on the shape of the code.

mod initramfs;
mod tidy;
mod vmlinux;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Takes the ELF kernel out of a compressed `vmlinuz`.
    Vmlinux {
        #[arg(long)]
        from: PathBuf,
        #[arg(long)]
        out: PathBuf,
    },
    /// Packs the guests' init, and the modules it needs, into an initramfs.
    KitInitramfs {
        #[arg(long)]
        init: PathBuf,
        /// `lib/modules/<release>` of the kernel; leave out for a kernel with everything built in.
        #[arg(long)]
        modules: Option<PathBuf>,
        #[arg(long)]
        out: PathBuf,
    },
    /// Checks the shape of the code; `cargo test -p xtask` does the same.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Vmlinux { from, out } => vmlinux::extract(&from, &out).map_err(Box::from),
        Chore::KitInitramfs { init, modules, out } => {
            initramfs::build(&init, modules.as_deref(), &out).map_err(Box::<dyn std::error::Error>::from)
        }
        Chore::Tidy => tidy::check().map_err(Box::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(reason) = cause {
                eprintln!("  cause: {reason}");
                cause = reason.source();
            }
            ExitCode::FAILURE
        }
    }
}
