//! What a person chose: the names of drivers and accelerators in configuration and environment.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which program or library runs the VM; the rule behind `auto` is written down in `vmm-host/src/choice.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverChoice {
    #[default]
    Auto,
    Libkrun,
    Qemu,
}

/// `auto` takes KVM when the probe ran guest instructions on it, else software emulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    #[default]
    Auto,
    Kvm,
    Tcg,
}

/// A name that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is unknown")]
pub struct UnknownChoice {
    pub what: &'static str,
    pub given: String,
    pub known: &'static [&'static str],
}

impl UnknownChoice {
    /// The next step for a person.
    #[must_use]
    pub fn hint(&self) -> String {
        format!("one of: {}", self.known.join(", "))
    }
}

impl FromStr for DriverChoice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" | "" => Ok(Self::Auto),
            "libkrun" => Ok(Self::Libkrun),
            "qemu" => Ok(Self::Qemu),
            other => {
                Err(UnknownChoice { what: "driver", given: other.to_owned(), known: &["auto", "libkrun", "qemu"] })
            }
        }
    }
}

impl FromStr for AccelChoice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" | "" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(UnknownChoice { what: "accel", given: other.to_owned(), known: &["auto", "kvm", "tcg"] }),
        }
    }
}

/// `III_DRIVER` and `III_ACCEL` where they are set, else what the configuration says, else `auto`.
///
/// # Errors
/// [`UnknownChoice`] names the one that says something else.
pub fn settle_choices(driver: Option<&str>, accel: Option<&str>) -> Result<(DriverChoice, AccelChoice), UnknownChoice> {
    let said = |name, configured: Option<&str>| {
        let variable = std::env::var(name).ok().filter(|value| !value.is_empty());
        variable.or(configured.map(str::to_owned)).unwrap_or_default()
    };
    Ok((said("III_DRIVER", driver).parse()?, said("III_ACCEL", accel).parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_refused_with_those_that_are() {
        assert_eq!("libkrun".parse(), Ok(DriverChoice::Libkrun));
        assert_eq!("".parse(), Ok(AccelChoice::Auto));
        let error = "krun".parse::<DriverChoice>().unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_str()),
            ("driver `krun` is unknown", "one of: auto, libkrun, qemu",)
        );
    }
}
