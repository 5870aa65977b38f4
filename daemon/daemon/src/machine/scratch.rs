//! A VM's writable disk: a sparse copy of the kit's empty one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Copies the allocated parts of `from` to a new file `to`; both have holes where nothing was written.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let length = source.metadata()?.len();
    let temporary = to.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    target.set_len(length)?;
    let copied = copy_data(&source, &target, length);
    if let Err(error) = copied.and_then(|()| fs::rename(&temporary, to)) {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(())
}

fn copy_data(source: &File, target: &File, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0i64;
    loop {
        let start = match lseek(source, at, Whence::SeekData) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(source, start, Whence::SeekHole)?;
        let mut position = u64::try_from(start).unwrap_or(length);
        let end_of_data = u64::try_from(end).unwrap_or(length);
        while position < end_of_data {
            let wanted = usize::try_from(end_of_data - position).unwrap_or(usize::MAX).min(buffer.len());
            let read = source.read_at(&mut buffer[..wanted], position)?;
            if read == 0 {
                return Ok(());
            }
            target.write_all_at(&buffer[..read], position)?;
            position += read as u64;
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn data_is_copied_and_holes_stay_holes() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).expect("made");
        file.set_len(1 << 30).expect("sized");
        file.write_all_at(b"front", 0).expect("written");
        file.write_all_at(b"middle", 500 << 20).expect("written");
        copy(&from, &to).expect("copied");
        let copied = File::open(&to).expect("opened");
        let mut buffer = [0; 6];
        copied.read_exact_at(&mut buffer, 500 << 20).expect("read");
        let metadata = copied.metadata().expect("metadata");
        assert_eq!((&buffer, metadata.len()), (b"middle", 1 << 30));
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    }
}
