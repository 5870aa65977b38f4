//! Names of images: presets, and where they come from on this machine.

use oci::{ImageRef, RefError};

use crate::home::Home;

/// Images that have a name of their own, and their public references.
pub(crate) const PRESETS: [(&str, &str); 2] =
    [("python", "docker.io/iiidev/python:latest"), ("node", "docker.io/iiidev/node:latest")];

/// A preset, by name or public reference, is the one built on this machine if there is one; anything else is what
/// it says.
pub(crate) fn resolve(home: &Home, name: &str) -> Result<ImageRef, RefError> {
    let wanted = name.strip_suffix(":latest").unwrap_or(name);
    let preset = PRESETS.iter().find(|(preset, reference)| {
        let reference = reference.strip_suffix(":latest").unwrap_or(reference);
        wanted == *preset || wanted == reference || Some(wanted) == reference.strip_prefix("docker.io/")
    });
    match preset {
        Some((preset, reference)) => match home.base_image(preset) {
            Some(layout) => ImageRef::parse(&format!("oci:{}:latest", layout.display())),
            None => ImageRef::parse(reference),
        },
        None => ImageRef::parse(name),
    }
}
