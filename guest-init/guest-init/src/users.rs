//! Who programs run as: names of the image's own `/etc/passwd` and `/etc/group`.

use std::fs;

use guest_protocol::{ErrorCode, GuestFailure};

use crate::wire::failure;

/// A user, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl Account {
    pub(crate) fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: "/root".into() }
    }

    /// Resolves `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub(crate) fn find(spec: &str) -> Result<Self, GuestFailure> {
        if spec.is_empty() {
            return Ok(Self::root());
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        resolve(spec, &passwd, &group)
            .ok_or_else(|| failure(ErrorCode::Invalid, format!("the image has no user or group `{spec}`")))
    }
}

fn resolve(spec: &str, passwd: &str, group: &str) -> Option<Account> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let number: Option<u32> = user.parse().ok();
    let known = rows(passwd).find(|row| {
        row.first() == Some(&user)
            || number.is_some_and(|number| row.get(2).and_then(|uid| uid.parse().ok()) == Some(number))
    });
    let mut account = match known {
        Some(row) => Account {
            uid: row.get(2)?.parse().ok()?,
            gid: row.get(3)?.parse().ok()?,
            groups: member_of(row.first()?, group),
            home: (*row.get(5)?).to_owned(),
        },
        // A number that the image does not know is a user all the same.
        None => Account { uid: number?, gid: 0, groups: Vec::new(), home: "/".into() },
    };
    if let Some(wanted) = wanted_group {
        account.gid = match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => rows(group).find(|row| row.first() == Some(&wanted))?.get(2)?.parse().ok()?,
        };
    }
    Some(account)
}

fn member_of(user: &str, group: &str) -> Vec<u32> {
    rows(group)
        .filter(|row| row.get(3).is_some_and(|members| members.split(',').any(|member| member == user)))
        .filter_map(|row| row.get(2)?.parse().ok())
        .collect()
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:100:Ada:/home/ada:/bin/sh\n";
    const GROUP: &str = "users:x:100:\nwheel:x:10:ada,bob\n";

    fn check(spec: &str, wanted: Option<(u32, u32, &[u32], &str)>) {
        let found = resolve(spec, PASSWD, GROUP);
        let found = found.as_ref().map(|a| (a.uid, a.gid, a.groups.as_slice(), a.home.as_str()));
        assert_eq!(found, wanted, "{spec}");
    }

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        check("ada", Some((1000, 100, &[10], "/home/ada")));
        check("1000", Some((1000, 100, &[10], "/home/ada")));
        check("ada:wheel", Some((1000, 10, &[10], "/home/ada")));
        check("4321:7", Some((4321, 7, &[], "/")));
        check("nobody", None);
        check("ada:nogroup", None);
    }
}
