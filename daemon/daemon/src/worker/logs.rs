//! What a worker prints: kept on the host in two bounded files, read back from their ends.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use daemon_api::worker::Positions;
use tracing::warn;

/// A file that has grown beyond this becomes `.1`, and a new one begins.
const ROTATE_BYTES: u64 = 8 * 1024 * 1024;

/// How far back a reader looks.
const TAIL_BYTES: u64 = 1024 * 1024;

/// Lines remembered for error messages, and their greatest length in bytes.
const LAST_WORDS: usize = 12;
const LAST_WORDS_LINE: usize = 400;

/// Which of a program's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn file(self) -> &'static str {
        match self {
            Self::Stdout => "stdout.log",
            Self::Stderr => "stderr.log",
        }
    }
}

/// A worker's log, open for writing. A disk that is full loses lines, never the worker.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Inner>>);

struct Inner {
    folder: PathBuf,
    stdout: Option<Bounded>,
    stderr: Option<Bounded>,
    complained: bool,
    last: VecDeque<String>,
    partial: Vec<u8>,
}

struct Bounded {
    file: File,
    length: u64,
}

impl Log {
    /// Appends to what is there.
    pub(crate) fn open(folder: PathBuf) -> Self {
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        let inner =
            Inner { folder, stdout: None, stderr: None, complained: false, last: VecDeque::new(), partial: Vec::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    pub(crate) fn write(&self, output: Output, bytes: &[u8]) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.remember(bytes);
        if let Err(error) = inner.append(output, bytes)
            && !std::mem::replace(&mut inner.complained, true)
        {
            warn!(folder = %inner.folder.display(), %error, "log lines of a worker are being lost");
        }
    }

    /// One line of ours, among the worker's.
    pub(crate) fn note(&self, text: &str) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = inner.append(Output::Stderr, format!("[iii] {text}\n").as_bytes());
    }

    /// Forgets what was said so far, for the next step's errors.
    pub(crate) fn new_chapter(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last.clear();
        inner.partial.clear();
    }

    pub(crate) fn last_words(&self) -> Vec<String> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unfinished = Some(printable(&inner.partial)).filter(|line| !line.is_empty());
        inner.last.iter().cloned().chain(unfinished).collect()
    }
}

impl Inner {
    fn append(&mut self, output: Output, bytes: &[u8]) -> io::Result<()> {
        let path = self.folder.join(output.file());
        let slot = match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        };
        if slot.as_ref().is_some_and(|log| log.length > ROTATE_BYTES) {
            *slot = None;
            fs::rename(&path, path.with_extension("log.1"))?;
        }
        let log = match slot {
            Some(log) => log,
            None => {
                // Never through a link that somebody else has put there.
                let options = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&path)?;
                let length = options.metadata()?.len();
                slot.insert(Bounded { file: options, length })
            }
        };
        log.length += bytes.len() as u64;
        log.file.write_all(bytes)
    }

    fn remember(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LAST_WORDS_LINE.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                let line = printable(&std::mem::take(&mut self.partial));
                if !line.is_empty() {
                    self.last.push_back(line);
                    if self.last.len() > LAST_WORDS {
                        self.last.pop_front();
                    }
                }
            }
        }
    }
}

/// What was read of a log.
pub(crate) struct Tail {
    pub(crate) lines: Vec<String>,
    /// Where the file ended.
    pub(crate) position: u64,
}

/// The last `count` lines, as far back as a reader looks; or, with `after`, the first `count` of those written since
/// that position.
pub(crate) fn tail(folder: &Path, output: Output, count: usize, after: Option<u64>, raw: bool) -> Tail {
    let path = folder.join(output.file());
    match after {
        None => latest(&path, count, raw),
        Some(after) => since(&path, count, after, raw),
    }
    .unwrap_or(Tail { lines: Vec::new(), position: after.unwrap_or(0) })
}

/// Where both files end.
pub(crate) fn positions(stdout: &Tail, stderr: &Tail) -> Positions {
    Positions { stdout: stdout.position, stderr: stderr.position }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// At most [`TAIL_BYTES`] of a file from `from`, and the file's length.
fn read_from(path: &Path, from: impl FnOnce(u64) -> u64) -> io::Result<(Vec<u8>, u64)> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from(length)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok((bytes, length))
}

fn text(line: &[u8], raw: bool) -> Option<String> {
    if raw {
        return Some(String::from_utf8_lossy(line).trim_end_matches(['\n', '\r']).to_owned());
    }
    Some(printable(line)).filter(|line| !line.is_empty())
}

fn latest(path: &Path, count: usize, raw: bool) -> io::Result<Tail> {
    let end_of = |path: &Path| read_from(path, |length| length.saturating_sub(TAIL_BYTES));
    let (bytes, length) = end_of(path)?;
    let cut = |bytes: &[u8], is_whole: bool| -> Vec<String> {
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(usize::from(!is_whole));
        lines.filter_map(|line| text(line, raw)).collect()
    };
    let mut lines = cut(&bytes, length <= TAIL_BYTES);
    if lines.len() < count
        && length <= TAIL_BYTES
        && let Ok((before, length)) = end_of(&older(path))
    {
        let mut both = cut(&before, length <= TAIL_BYTES);
        both.append(&mut lines);
        lines = both;
    }
    let skip = lines.len().saturating_sub(count);
    Ok(Tail { lines: lines.into_iter().skip(skip).collect(), position: length })
}

fn since(path: &Path, count: usize, after: u64, raw: bool) -> io::Result<Tail> {
    let (bytes, length) = read_from(path, |_| after)?;
    if after <= length {
        return Ok(whole_lines(&bytes, count, after, raw));
    }
    // A file that is shorter than it was is a new one; what was not read of the old one comes first.
    let (rest, old_length) = read_from(&older(path), |_| after).unwrap_or_default();
    let mut tail = whole_lines(&rest, count, after, raw);
    if tail.position >= old_length || rest.is_empty() {
        let (bytes, _) = read_from(path, |_| 0)?;
        let new = whole_lines(&bytes, count - tail.lines.len(), 0, raw);
        tail.lines.extend(new.lines);
        tail.position = new.position;
    }
    Ok(tail)
}

/// At most `count` lines, and the position behind them. The rest of an unfinished line is for the next look.
fn whole_lines(bytes: &[u8], count: usize, from: u64, raw: bool) -> Tail {
    let mut tail = Tail { lines: Vec::new(), position: from };
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        // A line longer than one look is cut.
        let is_finished = line.ends_with(b"\n") || line.len() as u64 == TAIL_BYTES;
        if !is_finished || tail.lines.len() == count {
            break;
        }
        tail.position += line.len() as u64;
        tail.lines.extend(text(line, raw));
    }
    tail
}

/// One line without escape sequences, control characters and spinners; what a carriage return overwrote is gone.
pub(crate) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    let text = text.rsplit('\r').next().unwrap_or(text);
    let mut clean = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => skip_escape(&mut letters),
            '\t' => clean.push('\t'),
            control if control.is_control() => {}
            letter => clean.push(letter),
        }
    }
    let spinner = |c: char| ('\u{2800}'..='\u{28ff}').contains(&c) || c.is_whitespace();
    if clean.chars().all(spinner) { String::new() } else { clean }
}

/// ECMA-48: CSI ends with a byte of 0x40 to 0x7e, OSC and its kin with BEL or ST, the rest are two characters.
fn skip_escape(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match letters.next() {
        Some('[') => {
            letters.find(|c| ('\u{40}'..='\u{7e}').contains(c));
        }
        Some(']' | 'P' | '^' | '_' | 'X') => {
            while let Some(letter) = letters.next() {
                if letter == '\u{7}' || (letter == '\u{1b}' && letters.next_if_eq(&'\\').is_some()) {
                    break;
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn escapes_spinners_and_overwritten_text_are_gone() {
        for (line, clean) in [
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]0;title\u{1b}\\after", "after"),
            ("10%\r20%\r100%", "100%"),
            ("⠋ ⠙", ""),
            ("a\u{8}b\tc\u{0}", "ab\tc"),
            ("\u{1b}[999", ""),
        ] {
            assert_eq!(printable(line.as_bytes()), clean, "{line:?}");
        }
    }

    #[test]
    fn a_tail_has_whole_lines_and_following_misses_none() {
        let folder = TempDir::new().expect("a folder");
        let log = Log::open(folder.path().join("w"));
        for number in 0..50 {
            log.write(Output::Stdout, format!("line {number}\nhalf").as_bytes());
            log.write(Output::Stdout, b" done\n");
        }
        log.write(Output::Stdout, b"unfinished");
        let path = folder.path().join("w");
        let first = tail(&path, Output::Stdout, 2, None, false);
        assert_eq!(first.lines, ["half done", "unfinished"]);
        let since = tail(&path, Output::Stdout, 100, Some(0), false);
        assert_eq!(since.lines.len(), 100);
        log.write(Output::Stdout, b" now\n");
        assert_eq!(tail(&path, Output::Stdout, 100, Some(since.position), false).lines, ["unfinished now"]);
        assert_eq!(log.last_words().last().map(String::as_str), Some("unfinished now"));
    }

    #[test]
    fn following_loses_nothing_however_much_is_said_at_once_and_over_a_new_file() {
        let folder = TempDir::new().expect("a folder");
        let log = Log::open(folder.path().to_owned());
        let mut position = 0;
        let mut heard = Vec::new();
        let listen = |position: &mut u64, heard: &mut Vec<String>, looks: usize| {
            for _ in 0..looks {
                let look = tail(folder.path(), Output::Stdout, 1000, Some(*position), false);
                *position = look.position;
                heard.extend(look.lines);
            }
        };
        let filler = "x".repeat(1000);
        for number in 0..20_000 {
            log.write(Output::Stdout, format!("{number} {filler}\n").as_bytes());
            if number % 3000 == 0 {
                listen(&mut position, &mut heard, 4);
            }
        }
        listen(&mut position, &mut heard, 20);
        let numbers: Vec<usize> =
            heard.iter().map(|line| line.split(' ').next().expect("a word").parse().expect("a number")).collect();
        assert_eq!(numbers.len(), 20_000);
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
        assert!(tail(folder.path(), Output::Stdout, 5000, None, false).lines.len() > 1000);
    }

    #[test]
    fn a_log_is_bounded_and_what_is_older_is_in_its_neighbour() {
        let folder = TempDir::new().expect("a folder");
        let log = Log::open(folder.path().to_owned());
        let chunk = vec![b'x'; 1024 * 1024];
        for _ in 0..30 {
            log.write(Output::Stderr, &chunk);
        }
        let total: u64 =
            fs::read_dir(folder.path()).expect("read").flatten().map(|e| e.metadata().expect("m").len()).sum();
        assert!(total <= 2 * (ROTATE_BYTES + 2 * 1024 * 1024), "{total} bytes");
    }

    #[test]
    fn a_log_that_cannot_be_written_is_a_warning_and_no_more() {
        let folder = TempDir::new().expect("a folder");
        std::os::unix::fs::symlink("/dev/full", folder.path().join("full")).expect("a link");
        let log = Log::open(folder.path().join("full"));
        log.write(Output::Stdout, b"words\n");
        assert_eq!(log.last_words(), ["words"]);
    }
}
