//! Reads a tar stream member by member: ustar, GNU and pax headers, long names, sparse files.
//!
//! Header fields are parsed by the `tar` crate. The walk from header to header is ours, because that crate reads
//! extension headers of any length into memory and splits pax records at line ends, which binary attributes hold.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

/// Largest extension header (long name, pax records) of one member.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Most extension headers before one member.
const MAX_EXTENSIONS: usize = 16;
/// Most data segments of a sparse file.
const MAX_SEGMENTS: usize = 1 << 16;
const BLOCK: u64 = 512;

/// Why a stream is no usable tar archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream could not be read or decompressed.
    #[error("the archive could not be read")]
    Read(#[from] io::Error),
    /// A header with a wrong checksum or a field that is no number.
    #[error("the archive has a damaged header: {0}")]
    Header(String),
    /// The stream ends inside a member.
    #[error("the archive ends in the middle of `{0}`")]
    Truncated(String),
    /// A header that describes more than any honest archive does.
    #[error("an extension header has {bytes} bytes; at most {max} are taken", max = MAX_EXTENSION_BYTES)]
    ExtensionTooLong {
        /// Its length.
        bytes: u64,
    },
    /// Extension headers without end.
    #[error("more than {MAX_EXTENSIONS} extension headers stand before one member")]
    TooManyExtensions,
    /// Segments that overlap, go backwards or leave the file.
    #[error("the sparse file `{0}` has a map that makes no sense")]
    Sparse(String),
}

/// One member's header, all its extensions applied.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of the file once unpacked.
    pub(crate) size: u64,
    /// The stretches the archive holds of a sparse file, in order; the rest is zeros. `None`: all of it.
    pub(crate) segments: Option<Vec<Segment>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

pub(crate) struct Tarball<R> {
    input: R,
    /// Bytes of the current member not yet read, and the padding behind it.
    body: u64,
    padding: u64,
    global: Records,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

impl<R: Read> Tarball<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, body: 0, padding: 0, global: Records::new() }
    }

    /// The next member; what is left of the one before is skipped.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut long_path = None;
        let mut long_link = None;
        let mut records = Records::new();
        let mut sparse_records = Vec::new();
        for _ in 0..=MAX_EXTENSIONS {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(damaged)?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => long_path = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => long_link = Some(until_nul(self.extension(size)?)),
                EntryType::XHeader => {
                    let raw = self.extension(size)?;
                    parse_records(&raw, |key, value| {
                        if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
                            sparse_records.push(value.to_vec());
                        }
                        records.insert(key.to_vec(), value.to_vec());
                    })?;
                }
                EntryType::XGlobalHeader => {
                    let raw = self.extension(size)?;
                    let mut bytes = self.global.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                    parse_records(&raw, |key, value| {
                        bytes += key.len() + value.len();
                        // An archive may state as much for all members as for one.
                        if bytes as u64 <= MAX_EXTENSION_BYTES {
                            self.global.insert(key.to_vec(), value.to_vec());
                        }
                    })?;
                }
                _ => return self.member(&header, long_path, long_link, records, &sparse_records).map(Some),
            }
        }
        Err(TarError::TooManyExtensions)
    }

    /// Reads from the current member's data as it is stored; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let want = self.body.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let got = self.input.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(TarError::Truncated("a member".into()));
        }
        self.body -= got as u64;
        Ok(got)
    }

    /// The stream behind the archive's last member.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn member(
        &mut self,
        header: &Header,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        mut records: Records,
        sparse_records: &[Vec<u8>],
    ) -> Result<Member, TarError> {
        for (key, value) in &self.global {
            records.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let text = |key: &str| records.get(key.as_bytes()).filter(|value| !value.is_empty()).cloned();
        let number = |key: &str| text(key).map(|value| parse_number(&value)).transpose();
        let sparse_name = text("GNU.sparse.name");
        let path =
            sparse_name.or_else(|| text("path")).or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = text("linkpath").or(long_link);
        let link = link.unwrap_or_else(|| header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default());
        let stored = match number("size")? {
            Some(size) => size,
            None => header.entry_size().map_err(damaged)?,
        };
        let kind = header.entry_type();
        let has_body = kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous();
        // Old archives give links the size of their target; only files have data, and unknown kinds skip theirs.
        self.set_body(if kind.is_hard_link() || kind.is_symlink() || kind.is_dir() { 0 } else { stored });
        let (mtime_s, mtime_ns) = match text("mtime") {
            Some(value) => parse_time(&value)?,
            None => (header.mtime().map_err(damaged)? as i64, 0),
        };
        let (size, segments) = if kind.is_gnu_sparse() {
            self.old_gnu_sparse(header, &path)?
        } else if has_body && records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            self.pax_sparse(&records, sparse_records, &path)?
        } else {
            (if has_body { stored } else { 0 }, None)
        };
        if let Some(segments) = &segments {
            check_segments(segments, size, self.body).ok_or_else(|| TarError::Sparse(crate::tree::show(&path)))?;
        }
        let id = |stated: Option<u64>, field: io::Result<u64>| -> Result<u32, TarError> {
            let value = stated.map_or(field, Ok).map_err(damaged)?;
            u32::try_from(value).map_err(|_| TarError::Header(format!("{value} is not a user or group id")))
        };
        let device = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
        let xattrs = records
            .iter()
            .filter_map(|(key, value)| key.strip_prefix(b"SCHILY.xattr.").map(|name| (name.to_vec(), value.clone())));
        Ok(Member {
            path,
            link,
            kind,
            mode: (header.mode().map_err(damaged)? & 0o7777) as u16,
            uid: id(number("uid")?, header.uid())?,
            gid: id(number("gid")?, header.gid())?,
            mtime_s,
            mtime_ns,
            device: (device(header.device_major()), device(header.device_minor())),
            xattrs: xattrs.collect(),
            size,
            segments,
        })
    }

    /// Sparse members of GNU's own format: a map in the header, continued in blocks behind it.
    fn old_gnu_sparse(&mut self, header: &Header, path: &[u8]) -> Result<(u64, Option<Vec<Segment>>), TarError> {
        let gnu = header.as_gnu().ok_or_else(|| TarError::Sparse(crate::tree::show(path)))?;
        let mut segments = Vec::new();
        let mut take = |entry: &tar::GnuSparseHeader| -> Result<(), TarError> {
            if !entry.is_empty() {
                let (offset, length) = (entry.offset().map_err(damaged)?, entry.length().map_err(damaged)?);
                segments.push(Segment { offset, length });
            }
            match segments.len() > MAX_SEGMENTS {
                true => Err(TarError::Sparse(crate::tree::show(path))),
                false => Ok(()),
            }
        };
        gnu.sparse.iter().try_for_each(&mut take)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes())?;
            block.sparse.iter().try_for_each(&mut take)?;
            extended = block.is_extended();
        }
        Ok((gnu.real_size().map_err(damaged)?, Some(segments)))
    }

    /// Sparse members in pax archives: the map stands in records (0.0, 0.1) or before the data (1.0).
    fn pax_sparse(
        &mut self,
        records: &Records,
        pairs: &[Vec<u8>],
        path: &[u8],
    ) -> Result<(u64, Option<Vec<Segment>>), TarError> {
        let wrong = || TarError::Sparse(crate::tree::show(path));
        let size =
            records.get(b"GNU.sparse.realsize".as_slice()).or_else(|| records.get(b"GNU.sparse.size".as_slice()));
        let size = parse_number(size.ok_or_else(wrong)?)?;
        let numbers = if records.get(b"GNU.sparse.major".as_slice()).is_some_and(|major| major == b"1") {
            self.sparse_map_before_data()?
        } else if let Some(map) = records.get(b"GNU.sparse.map".as_slice()) {
            map.split(|byte| *byte == b',').map(parse_number).collect::<Result<_, _>>()?
        } else {
            pairs.iter().map(|value| parse_number(value)).collect::<Result<Vec<_>, _>>()?
        };
        if numbers.len() % 2 != 0 || numbers.len() / 2 > MAX_SEGMENTS {
            return Err(wrong());
        }
        let segments = numbers.chunks(2).map(|pair| Segment { offset: pair[0], length: pair[1] });
        Ok((size, Some(segments.collect())))
    }

    fn sparse_map_before_data(&mut self) -> Result<Vec<u64>, TarError> {
        let mut numbers = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = None;
        while wanted != Some(numbers.len()) {
            let mut block = [0; BLOCK as usize];
            let mut filled = 0;
            while filled < block.len() {
                match self.read(&mut block[filled..])? {
                    0 => return Err(TarError::Truncated("a sparse map".into())),
                    got => filled += got,
                }
            }
            for byte in block {
                if wanted == Some(numbers.len()) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(TarError::Header("a sparse map holds a number that is too long".into()));
                    }
                    continue;
                }
                let number = parse_number(&digits)?;
                digits.clear();
                match wanted {
                    Some(_) => numbers.push(number),
                    None if number <= MAX_SEGMENTS as u64 => wanted = Some(2 * number as usize),
                    None => return Err(TarError::Header(format!("a sparse map of {number} segments"))),
                }
            }
        }
        Ok(numbers)
    }

    /// The next header; `None` at the mark of the end, or where the stream ends between members.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let raw = header.as_mut_bytes();
        let mut filled = 0;
        while filled < raw.len() {
            match self.input.read(&mut raw[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated("a header".into())),
                got => filled += got,
            }
        }
        if raw.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 =
            raw.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        match header.cksum() {
            Ok(stated) if stated == sum => Ok(Some(header)),
            _ => Err(TarError::Header("its checksum is wrong".into())),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(TarError::ExtensionTooLong { bytes: size });
        }
        self.set_body(size);
        let mut content = vec![0; size as usize];
        self.input.read_exact(&mut content)?;
        self.body = 0;
        Ok(content)
    }

    fn set_body(&mut self, size: u64) {
        self.body = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let (body, padding) = (self.body, self.padding);
        let rest = body.saturating_add(padding);
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        (self.body, self.padding) = (0, 0);
        // Some writers leave out what follows the last member's data; nothing is missing then.
        if skipped < body { Err(TarError::Truncated("a member".into())) } else { Ok(()) }
    }
}

/// Segments are in order, within the file, and as long together as the data that is there.
fn check_segments(segments: &[Segment], size: u64, stored: u64) -> Option<()> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return None;
        }
        end = segment.offset.checked_add(segment.length)?;
        total = total.checked_add(segment.length)?;
    }
    (end <= size && total <= stored).then_some(())
}

/// Records of the form `<length> <key>=<value>\n`, where the length counts everything; values are any bytes.
fn parse_records(mut raw: &[u8], mut take: impl FnMut(&[u8], &[u8])) -> Result<(), TarError> {
    let wrong = || TarError::Header("a pax record is malformed".into());
    while !raw.is_empty() && raw[0] != 0 {
        let space = raw.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length = usize::try_from(parse_number(&raw[..space])?).map_err(|_| wrong())?;
        if length > raw.len() || length < space + 2 || raw[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &raw[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        take(&record[..equals], &record[equals + 1..]);
        raw = &raw[length..];
    }
    Ok(())
}

fn parse_number(digits: &[u8]) -> Result<u64, TarError> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| TarError::Header(format!("`{}` is not a number", crate::tree::show(digits))))
}

/// `[-]seconds[.fraction]`.
fn parse_time(text: &[u8]) -> Result<(i64, u32), TarError> {
    let (negative, rest) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = rest.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(parse_number(parts.next().unwrap_or_default())?)
        .map_err(|_| TarError::Header("a time is out of range".into()))?;
    let mut fraction = parts.next().unwrap_or_default().to_vec();
    fraction.resize(9, b'0');
    let nanoseconds = parse_number(&fraction)? as u32;
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

fn damaged(error: io::Error) -> TarError {
    TarError::Header(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_fractions_are_read() {
        assert_eq!(parse_time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(parse_time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(parse_time(b"-7").unwrap(), (-7, 0));
        assert!(parse_time(b"soon").is_err());
    }

    #[test]
    fn a_binary_value_with_line_ends_is_one_record() {
        let mut seen = Vec::new();
        parse_records(b"11 k=a\nb\n=\n6 x=y\n", |key, value| seen.push((key.to_vec(), value.to_vec()))).unwrap();
        assert_eq!(seen, [(b"k".to_vec(), b"a\nb\n=".to_vec()), (b"x".to_vec(), b"y".to_vec())]);
        for raw in ["9 k=v\n", "x k=v\n", "0 \n", "6 kv\n\n", "99999999999999999999 k=v\n"] {
            assert!(parse_records(raw.as_bytes(), |_, _| ()).is_err(), "{raw:?}");
        }
    }

    #[test]
    fn segments_must_be_ordered_and_inside() {
        let segments = |list: &[(u64, u64)]| -> Vec<Segment> {
            list.iter().map(|(offset, length)| Segment { offset: *offset, length: *length }).collect()
        };
        assert!(check_segments(&segments(&[(0, 5), (10, 5)]), 15, 10).is_some());
        assert!(check_segments(&segments(&[(10, 5), (0, 5)]), 15, 10).is_none());
        assert!(check_segments(&segments(&[(0, 16)]), 15, 16).is_none());
        assert!(check_segments(&segments(&[(u64::MAX, 1)]), u64::MAX, 1).is_none());
        assert!(check_segments(&segments(&[(0, 5)]), 15, 4).is_none());
    }

    #[test]
    fn what_follows_the_last_data_may_be_missing_and_the_data_may_not() {
        let mut header = Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(5);
        header.set_cksum();
        let cut = [header.as_bytes().as_slice(), b"12345"].concat();
        assert_eq!(read_all(&cut).unwrap(), 5);
        assert!(matches!(read_all(&cut[..cut.len() - 1]), Err(TarError::Truncated(_))));
    }

    /// Reads all members with their data, as a merge does.
    fn read_all(raw: &[u8]) -> Result<usize, TarError> {
        let mut archive = Tarball::new(raw);
        let mut bytes = 0;
        let mut buffer = [0; 1000];
        while let Some(member) = archive.next_member()? {
            assert!(member.segments.is_none_or(|list| list.iter().all(|s| s.offset + s.length <= member.size)));
            loop {
                match archive.read(&mut buffer)? {
                    0 => break,
                    got => bytes += got,
                }
            }
        }
        Ok(bytes)
    }

    fn sample(kinds: &[u8], body: &[u8]) -> Vec<u8> {
        let mut raw = Vec::new();
        for kind in kinds {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::new(*kind));
            header.set_size(body.len() as u64);
            header.set_cksum();
            raw.extend(header.as_bytes());
            raw.extend(body);
            raw.resize(raw.len().next_multiple_of(512), 0);
        }
        raw
    }

    proptest::proptest! {
        /// Headers whose checksum is right say what they like: an error or an end, and no panic.
        #[test]
        fn hostile_headers_end_in_an_error(
            kinds in proptest::collection::vec(proptest::sample::select(b"0125xgLKS".to_vec()), 1..6),
            body in "[0-9]{1,3} (GNU\\.sparse\\.(map|size|major|realsize)|size|path|mtime|uid)=[0-9,.-]{1,12}\n",
            edits in proptest::collection::vec((0_usize..2048, proptest::num::u8::ANY), 0..12),
        ) {
            let mut raw = sample(&kinds, body.as_bytes());
            for (at, byte) in edits {
                if let Some(place) = raw.get_mut(at) {
                    *place = byte;
                }
            }
            for block in raw.chunks_mut(512) {
                let sum: u32 = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
                if block.len() == 512 && block[257..262] == *b"ustar" {
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let _ = read_all(&raw);
        }
    }
}
