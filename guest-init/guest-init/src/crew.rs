//! Threads that carry out requests. A few are kept for the next ones: to start and to end a thread is code that a clone
//! would have to translate for its first program (ARCHITECTURE.md, "A sandbox's life").

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::wire::lock;

/// Threads that wait once their job is done. Besides them there is one for each request that runs, without a limit.
const KEPT: usize = 2;

const STACK_BYTES: usize = 256 * 1024;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Crew(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that wait; each of `jobs` has one of them to itself.
    idle: usize,
    /// Nobody gives out work any more.
    dismissed: bool,
}

impl Crew {
    /// With its threads: a clone of this machine finds them waiting.
    pub(crate) fn new() -> Self {
        let crew = Self(Arc::default());
        for _ in 0..KEPT {
            // Missing ones are started when they are needed.
            let _ = crew.hire(|| {});
        }
        crew
    }

    /// Runs `job` at once, in a thread of its own while it runs.
    ///
    /// # Errors
    /// The kernel had no thread for it.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = lock(&self.0.state);
        if state.idle > state.jobs.len() {
            state.jobs.push_back(Box::new(job));
            drop(state);
            self.0.called.notify_one();
            return Ok(());
        }
        drop(state);
        self.hire(job)
    }

    fn hire(&self, first: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let life = move || {
            first();
            while let Some(job) = shared.next() {
                job();
            }
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(life).map(drop)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        lock(&self.0.state).dismissed = true;
        self.0.called.notify_all();
    }
}

impl Shared {
    /// Waits for the next job; `None` for a thread too many, and for all when the crew is dropped.
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        if state.idle == KEPT {
            return None;
        }
        state.idle += 1;
        loop {
            if state.dismissed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                state.idle -= 1;
                return Some(job);
            }
            state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn jobs_that_wait_for_each_other_all_run_and_afterwards_two_threads_are_left() {
        const JOBS: usize = 3 * KEPT;
        let crew = Crew::new();
        let (done, finished) = channel();
        for _ in 0..3 {
            let all_here = Arc::new(Barrier::new(JOBS));
            for _ in 0..JOBS {
                let (all_here, done) = (Arc::clone(&all_here), done.clone());
                crew.run(move || {
                    all_here.wait();
                    done.send(()).expect("somebody listens");
                })
                .expect("a thread");
            }
            assert_eq!(finished.iter().take(JOBS).count(), JOBS);
        }
        // Threads hold the other references; those too many leave on their own.
        while Arc::strong_count(&crew.0) != KEPT + 1 || lock(&crew.0.state).idle != KEPT {
            thread::yield_now();
        }
        let shared = Arc::downgrade(&crew.0);
        drop(crew);
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
