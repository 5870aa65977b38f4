//! A machine that stands still because the host's disk is full: tried again for a while, then ended.
//!
//! ```text
//! runs ─ a write finds no space ─► stands ─ a moment ─► tries again ─ it goes through ─► runs
//!                                    ▲                     │
//!                                    └── still no space ───┴─ for too long ─► ended, with the reason
//! ```
//! The guest notices nothing but the time. An I/O error instead would end its file system, and may leave a writer in
//! its kernel for ever.
//!
//! A machine that is paused by command stays so, whatever its disk: what could not be written is tried again when it
//! is resumed, and patience begins anew.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::qmp::Heard;

/// Between two tries.
const MOMENT: Duration = Duration::from_millis(500);

/// How long a disk may be full.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be done about what was heard.
#[derive(Default)]
pub(crate) struct Reaction {
    pub(crate) command: Option<&'static str>,
    /// Come back when nothing is heard for this long; `None` waits for ever.
    pub(crate) listen_for: Option<Duration>,
    /// Nothing that follows matters.
    pub(crate) done: bool,
}

/// What is known of the disk.
#[derive(Debug, Default)]
pub(crate) struct FullDisk {
    since: Option<Instant>,
    stands: bool,
    paused: bool,
    /// It was full for too long: the machine is to be ended.
    pub(crate) gave_up: bool,
}

impl FullDisk {
    /// `warn` is called when a disk turns out to be full, and for other errors of a disk.
    pub(crate) fn heed(&mut self, heard: &Heard, now: Instant, warn: impl FnOnce(String)) -> Reaction {
        match heard {
            Heard::Event { name, data } if name == "BLOCK_IO_ERROR" => self.failed(data, now, warn),
            Heard::Event { .. } | Heard::Command(_) | Heard::Ended => {}
            Heard::Silence if self.paused => {}
            Heard::Silence if self.stands => {
                self.stands = false;
                self.gave_up = self.since.is_some_and(|since| now.duration_since(since) > PATIENCE);
                return match self.gave_up {
                    true => Reaction { done: true, ..Reaction::default() },
                    false => Reaction { command: Some("cont"), listen_for: Some(MOMENT), done: false },
                };
            }
            // It ran for a moment: there is space again.
            Heard::Silence => self.since = None,
        }
        Reaction { listen_for: self.listen_for(), ..Reaction::default() }
    }

    /// How soon silence means something.
    pub(crate) fn listen_for(&self) -> Option<Duration> {
        self.since.filter(|_| !self.paused).map(|_| MOMENT)
    }

    pub(crate) fn pause(&mut self) {
        self.paused = true;
    }

    /// The machine runs again, and tries again by itself what could not be written.
    pub(crate) fn resume(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// A write has found no space, and none has gone through since.
    pub(crate) fn is_full(&self) -> bool {
        self.since.is_some()
    }

    fn failed(&mut self, data: &Value, now: Instant, warn: impl FnOnce(String)) {
        let reason = data["reason"].as_str().unwrap_or("for no known reason");
        if data["action"] != "stop" {
            return warn(format!("a disk of the VM cannot be read or written on the host: {reason}"));
        }
        self.stands = true;
        if self.since.is_none() {
            self.since = Some(now);
            let patience = PATIENCE.as_secs();
            warn(format!("the host's disk is full ({reason}): the VM stands still, for at most {patience} s"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Says what is heard each half second, and returns the commands.
    fn play(said: &[Option<&Value>]) -> (Vec<&'static str>, usize, FullDisk) {
        let (mut disk, mut now, mut commands, mut warnings) = (FullDisk::default(), Instant::now(), Vec::new(), 0);
        for data in said {
            if disk.gave_up {
                break;
            }
            let heard = match data {
                Some(data) => Heard::Event { name: "BLOCK_IO_ERROR".to_owned(), data: (*data).clone() },
                None => Heard::Silence,
            };
            commands.extend(disk.heed(&heard, now, |_| warnings += 1).command);
            now += MOMENT;
        }
        (commands, warnings, disk)
    }

    #[test]
    fn a_disk_that_has_space_again_goes_on() {
        let full = json!({ "action": "stop", "reason": "No space left on device" });
        let (commands, warnings, disk) = play(&[Some(&full), None, Some(&full), None, None]);
        assert_eq!((commands, warnings, disk.gave_up, disk.since), (vec!["cont", "cont"], 1, false, None));
    }

    #[test]
    fn a_disk_that_stays_full_ends_the_machine() {
        let full = json!({ "action": "stop", "reason": "No space left on device" });
        let said: Vec<Option<&Value>> = [Some(&full), None].into_iter().cycle().take(30).collect();
        let (commands, warnings, disk) = play(&said);
        assert!(disk.gave_up && warnings == 1 && commands.len() > 5, "{commands:?}");
    }

    #[test]
    fn a_paused_machine_is_left_alone_until_it_is_resumed() {
        let full = json!({ "action": "stop", "reason": "No space left on device" });
        let error = Heard::Event { name: "BLOCK_IO_ERROR".to_owned(), data: full };
        let (mut disk, now) = (FullDisk::default(), Instant::now());
        disk.heed(&error, now, drop);
        disk.pause();
        assert_eq!((disk.listen_for(), disk.is_full()), (None, true));
        let much_later = now + 10 * PATIENCE;
        let reaction = disk.heed(&Heard::Silence, much_later, drop);
        assert!(reaction.command.is_none() && reaction.listen_for.is_none() && !disk.gave_up);
        disk.resume();
        assert!(!disk.is_full());
        assert_eq!(disk.heed(&error, much_later, drop).listen_for, Some(MOMENT));
        assert_eq!(disk.heed(&Heard::Silence, much_later, drop).command, Some("cont"));
    }

    #[test]
    fn another_error_is_told_and_no_more() {
        let broken = json!({ "action": "report", "reason": "Input/output error" });
        let (commands, warnings, _) = play(&[Some(&broken), Some(&broken)]);
        assert_eq!((commands.len(), warnings), (0, 2));
    }
}
