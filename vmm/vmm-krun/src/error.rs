//! What can go wrong before a guest runs, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::confine::ConfineError;
use vmm_host::{DiskError, ProcessError};

/// Why no VM runs.
#[derive(Debug, thiserror::Error)]
pub enum KrunError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("libkrun takes at most {max} virtual processors, not {given}")]
    TooManyVcpus { given: u32, max: u8 },
    #[error("the path {path} cannot be given to libkrun: it holds a NUL or is not UTF-8", path = path.display())]
    Path { path: PathBuf },
    #[error("libkrun refused {call}: {source}")]
    Refused { call: &'static str, source: io::Error },
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("this program cannot start itself again: {source}")]
    OwnProgram { source: io::Error },
}

impl KrunError {
    /// The next step for a person.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Disk(error) => Some(error.hint()),
            Self::Refused { .. } => Some("the messages are in libkrun.log; driver `qemu` may work".to_owned()),
            _ => None,
        }
    }
}
