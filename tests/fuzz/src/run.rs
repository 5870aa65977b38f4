//! Replays a target's corpus, then mutates it until the time is up.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::features::Features;

/// Longest input that is made.
const MAX_BYTES: usize = 4096;

/// Replays the kept inputs of `name`, then mutates them for a while.
///
/// # Panics
/// When `target` does, with the input and the seed; or when nothing is kept.
pub fn run(name: &str, target: fn(&[u8], &mut Features)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut pool = kept(&folder);
    assert!(!pool.is_empty(), "{} has inputs", folder.display());
    let seed = variable("III_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut seen = Features::default();
    for input in &pool {
        seen.take(observe(name, target, input, seed));
    }
    let (begun, replayed) = (Instant::now(), pool.len());
    let patience = Duration::from_secs(variable("III_FUZZ_SECONDS").unwrap_or(5));
    let keep = std::env::var_os("III_FUZZ_KEEP").is_some();
    let (mut dice, mut runs) = (Dice(seed), 0_u64);
    while begun.elapsed() < patience {
        let input = dice.mutated(&pool);
        if seen.take(observe(name, target, &input, seed)) {
            if keep {
                fs::write(folder.join(format!("{seed:x}-{runs:x}")), &input).expect("an input is kept");
            }
            pool.push(input);
        }
        runs += 1;
    }
    println!("{name}: III_TEST_SEED={seed}, {replayed} replayed, {runs} made, {} features", seen.count());
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn kept(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).collect()
}

/// One run of the target.
fn observe(name: &str, target: fn(&[u8], &mut Features), input: &[u8], seed: u64) -> Features {
    let mut features = Features::default();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input, &mut features))) {
        let file = std::env::temp_dir().join(format!("fuzz-{name}-{seed:x}"));
        let written = fs::write(&file, input).is_ok();
        eprintln!("{name}: III_TEST_SEED={seed}, input {:?}", String::from_utf8_lossy(input));
        eprintln!("written to {}: {written}; it belongs into the corpus", file.display());
        std::panic::resume_unwind(panic);
    }
    features
}

/// Numbers from a seed; how random they are does not matter.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }

    /// One of the pool, changed in a few places.
    fn mutated(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(4) {
            self.mutate(&mut input, pool);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(16)).min(input.len());
        match self.below(8) {
            0 => input.insert(at, self.byte()),
            1 => drop(input.drain(at..end)),
            2 => drop(input.splice(at..at, input[at..end].to_vec())),
            3 => {
                // A piece of another one.
                let other = &pool[self.below(pool.len())];
                let from = self.below(other.len() + 1);
                let until = (from + self.below(64)).min(other.len());
                drop(input.splice(at..end, other[from..until].iter().copied()));
            }
            4 => {
                const TELLING: [&[u8]; 8] = [b"null", b"\"", b"\\u0022", b"{}", b"[", b"e999", b"\xff", b"\x00"];
                let telling = TELLING[self.below(TELLING.len())];
                drop(input.splice(at..end, telling.iter().copied()));
            }
            kind => {
                let byte = self.byte();
                let Some(changed) = input.get_mut(at) else { return input.push(byte) };
                *changed = match kind {
                    5 => byte,
                    6 => *changed ^ (1 << (byte % 8)),
                    _ => changed.wrapping_add(byte % 8).wrapping_sub(4),
                };
            }
        }
    }
}
