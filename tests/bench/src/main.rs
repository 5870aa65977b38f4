//! `make bench`: what things cost, as ratios within one run; a table on stdout, the same as JSON in a file.
//!
//! Absolute times differ from machine to machine and from hour to hour; what is compared was measured side by side.
//!
//! ```text
//! bench [--json FILE] [AREA]...      areas: boot warm sandbox fork worker image relay bus; all of them by default
//! ```

mod bare;
mod boot;
mod bus;
mod fork;
mod image;
mod machine;
mod relay;
mod report;
mod sandbox;
mod warm;
mod worker;

use std::process::ExitCode;

use report::Report;

type Measure = fn(&mut Report);

const AREAS: [(&str, Measure); 8] = [
    ("boot", boot::measure),
    ("warm", warm::measure),
    ("sandbox", sandbox::measure),
    ("fork", fork::measure),
    ("worker", worker::measure),
    ("image", image::measure),
    ("relay", relay::measure),
    ("bus", bus::measure),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut file = None;
    let mut wanted = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => file = arguments.next(),
            area if AREAS.iter().any(|(name, _)| *name == area) => wanted.push(argument),
            other => {
                eprintln!(
                    "error: `{other}` is no area; there are boot, warm, sandbox, fork, worker, image, relay and bus"
                );
                return ExitCode::from(2);
            }
        }
    }
    let mut report = Report::default();
    for (name, measure) in AREAS {
        if wanted.is_empty() || wanted.iter().any(|area| area == name) {
            eprintln!("== {name}");
            measure(&mut report);
        }
    }
    println!("{}", report.table());
    if let Some(file) = file
        && let Err(error) = std::fs::write(&file, report.json() + "\n")
    {
        eprintln!("error: could not write {file}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
