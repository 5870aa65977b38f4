//! A guest's memory, copied out of QEMU while the guest runs, and once more, what differs, while it stands still.
//!
//! The memory is a private mapping of the file it was restored from: what the guest has written since are QEMU's own
//! pages, the rest is still the file's. A guest that was booted has no file, and all pages are QEMU's own. A page that is
//! QEMU's own stays so: the second look finds all pages of the first.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;

use nix::unistd::Pid;

use crate::pages::{self, PAGE, Stretch};
use crate::sparse;

/// Read at a time by one thread: stays in the processor's cache.
const BUFFER: u64 = 512 * 1024;

/// Most places the kernel reads from in one call.
const MAX_PLACES: usize = 1024;

/// Below, a second thread costs more than it saves.
const WORTH_A_THREAD: u64 = 16 * 1024 * 1024;

/// Entries of `pagemap` read at a time.
const ENTRIES: u64 = 64 * 1024;

/// Where the memory of a running guest is.
#[derive(Debug)]
pub(crate) struct Ram<'a> {
    pid: Pid,
    base: Option<&'a File>,
    bytes: u64,
    stretches: Vec<Stretch>,
}

/// What a look at the memory found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// QEMU's own pages.
    pub(crate) private: u64,
    /// What the copy did not hold yet.
    pub(crate) written: u64,
}

impl<'a> Ram<'a> {
    /// `base` is the file that was mapped, `None` for anonymous memory.
    pub(crate) fn find(pid: Pid, base: Option<&'a File>, bytes: u64) -> io::Result<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let stretches = match base {
            Some(file) => pages::of_file(&maps, file.metadata()?.ino(), bytes),
            None => pages::nameless(&maps, bytes),
        };
        let stretches = stretches
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the guest's memory is not found in QEMU"))?;
        Ok(Self { pid, base, bytes, stretches })
    }

    /// Makes `copy`, an empty file, what the guest's memory was before the guest wrote to it.
    pub(crate) fn begin(&self, copy: &File) -> io::Result<()> {
        copy.set_len(self.bytes)?;
        self.base.map_or(Ok(()), |base| sparse::copy(base, copy))
    }

    /// Makes `copy` what the memory is now; only what differs is written.
    pub(crate) fn refresh(&self, copy: &File) -> io::Result<Copied> {
        let runs = self.private()?;
        let private = runs.iter().map(|run| run.bytes).sum();
        let batches = batches(&runs);
        let (first, second) =
            batches.split_at(if private < WORTH_A_THREAD { batches.len() } else { batches.len() / 2 });
        let written = thread::scope(|scope| {
            let second = scope.spawn(|| copy_batches(self.pid, second, copy));
            let first = copy_batches(self.pid, first, copy)?;
            let second = second.join().map_err(|_| io::Error::other("a thread that copied memory panicked"))??;
            Ok::<u64, io::Error>(first + second)
        })?;
        Ok(Copied { private, written })
    }

    fn private(&self) -> io::Result<Vec<Stretch>> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut runs = Vec::new();
        for stretch in &self.stretches {
            let mut done = 0;
            while done < stretch.bytes {
                let bytes = (stretch.bytes - done).min(ENTRIES * PAGE);
                let part = Stretch { address: stretch.address + done, offset: stretch.offset + done, bytes };
                let mut raw = vec![0; usize::try_from(bytes / PAGE * 8).unwrap_or(0)];
                pagemap.read_exact_at(&mut raw, part.address / PAGE * 8)?;
                let (entries, _) = raw.as_chunks::<8>();
                let entries: Vec<u64> = entries.iter().map(|entry| u64::from_ne_bytes(*entry)).collect();
                pages::private(&entries, part, &mut runs);
                done += bytes;
            }
        }
        Ok(runs)
    }
}

/// Cuts runs into what is read at a time.
fn batches(runs: &[Stretch]) -> Vec<Vec<Stretch>> {
    let mut batches: Vec<Vec<Stretch>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let mut left = *run;
        while left.bytes > 0 {
            if room == 0 || batches.last().is_none_or(|batch| batch.len() == MAX_PLACES) {
                batches.push(Vec::new());
                room = BUFFER;
            }
            let bytes = left.bytes.min(room);
            if let Some(batch) = batches.last_mut() {
                batch.push(Stretch { bytes, ..left });
            }
            room -= bytes;
            left = Stretch { address: left.address + bytes, offset: left.offset + bytes, bytes: left.bytes - bytes };
        }
    }
    batches
}

fn copy_batches(pid: Pid, batches: &[Vec<Stretch>], copy: &File) -> io::Result<u64> {
    let (mut memory, mut saved) = (vec![0; BUFFER as usize], vec![0; BUFFER as usize]);
    let mut written = 0;
    for batch in batches {
        let length = read_memory(pid, batch, &mut memory)?;
        let mut rest = &memory[..length];
        for part in batch {
            let (now, after) = rest.split_at(usize::try_from(part.bytes).unwrap_or(0));
            rest = after;
            let before = &mut saved[..now.len()];
            copy.read_exact_at(before, part.offset)?;
            if now != before {
                written += write_differences(copy, part.offset, now, before)?;
            }
        }
    }
    Ok(written)
}

#[cfg(target_os = "linux")]
fn read_memory(pid: Pid, batch: &[Stretch], into: &mut [u8]) -> io::Result<usize> {
    use nix::errno::Errno;
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};

    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let places: Vec<RemoteIoVec> =
        batch.iter().map(|part| RemoteIoVec { base: size(part.address), len: size(part.bytes) }).collect();
    let wanted = places.iter().map(|place| place.len).sum();
    match process_vm_readv(pid, &mut [io::IoSliceMut::new(&mut into[..wanted])], &places) {
        Ok(read) if read == wanted => Ok(wanted),
        Ok(_) => Err(io::Error::other("a part of the guest's memory cannot be read")),
        Err(Errno::EPERM) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "this system does not let a process read its child's memory (kernel.yama.ptrace_scope)",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Elsewhere a process does not read another's memory just so.
#[cfg(not(target_os = "linux"))]
fn read_memory(_pid: Pid, _batch: &[Stretch], _into: &mut [u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Writes the pages that differ, neighbours together.
fn write_differences(copy: &File, offset: u64, now: &[u8], before: &[u8]) -> io::Result<u64> {
    let page = PAGE as usize;
    let differs = |number: usize| {
        let at = number * page..(number + 1) * page;
        now[at.clone()] != before[at]
    };
    let (mut number, count, mut written) = (0, now.len() / page, 0);
    while number < count {
        let end = (number..count).find(|next| !differs(*next)).unwrap_or(count);
        if end == number {
            number += 1;
            continue;
        }
        copy.write_all_at(&now[number * page..end * page], offset + (number * page) as u64)?;
        written += ((end - number) * page) as u64;
        number = end;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_in_bytes_and_places_and_lose_nothing() {
        let far_apart = (0..3000).map(|number| Stretch { address: number * 8192, offset: number * 8192, bytes: PAGE });
        let long = Stretch { address: 1 << 40, offset: 1 << 30, bytes: 3 * BUFFER + PAGE };
        let runs: Vec<Stretch> = far_apart.chain([long]).collect();
        let batches = batches(&runs);
        let bytes = |batch: &Vec<Stretch>| batch.iter().map(|part| part.bytes).sum::<u64>();
        assert!(batches.iter().all(|batch| batch.len() <= MAX_PLACES && bytes(batch) <= BUFFER));
        assert_eq!(batches.iter().map(bytes).sum::<u64>(), 3000 * PAGE + long.bytes);
        let last = batches.last().unwrap().last().unwrap();
        assert_eq!(last.offset + last.bytes, long.offset + long.bytes);
    }

    /// A process of its own would need a helper program: this one's own memory serves as well.
    #[test]
    fn only_pages_that_differ_are_written_and_zeros_replace_what_was_there() {
        let mut memory = vec![0u8; 6 * PAGE as usize];
        let start = memory.as_ptr() as u64;
        let address = start.next_multiple_of(PAGE);
        let first = usize::try_from(address - start).unwrap();
        let page = PAGE as usize;
        memory[first + page..first + 2 * page].fill(1);
        memory[first + 3 * page..first + 4 * page].fill(3);
        let copy = tempfile::tempfile().unwrap();
        copy.set_len(4 * PAGE).unwrap();
        copy.write_all_at(&[9; 4096], 2 * PAGE).unwrap();
        let whole = vec![vec![Stretch { address, offset: 0, bytes: 4 * PAGE }]];
        assert_eq!(copy_batches(Pid::this(), &whole, &copy).unwrap(), 3 * PAGE);
        let mut read = vec![0; 4 * page];
        copy.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, memory[first..first + 4 * page]);
        assert_eq!(copy_batches(Pid::this(), &whole, &copy).unwrap(), 0);
    }
}
