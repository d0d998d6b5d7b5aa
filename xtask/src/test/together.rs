//! Runs the test programs, several at a time: most of what a test does is waiting for other processes and for clocks.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::Result;

use crate::programs::{Ended, Program};

/// Programs that have the machine to themselves: what they measure, or the load that they make, is what they are about.
const ALONE: [&str; 2] = ["shield_flood", "steering"];

/// Programs at a time, on machines with more cores, too: each has brokers, clients and network namespaces.
const AT_A_TIME_MAX: usize = 4;

/// Runs all of them and hands each to `ended` as soon as it has ended.
///
/// # Errors
/// One can't be started.
pub fn run(programs: &[Program], mut ended: impl FnMut(&Program, Ended)) -> Result<()> {
    let (alone, together): (Vec<&Program>, Vec<&Program>) =
        programs.iter().partition(|p| ALONE.contains(&p.name()));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    run_some(&together, cores.min(AT_A_TIME_MAX), &mut ended)?;
    run_some(&alone, 1, &mut ended)
}

/// Runs `programs`, `at_a_time` of them side by side.
fn run_some(
    programs: &[&Program],
    at_a_time: usize,
    ended: &mut impl FnMut(&Program, Ended),
) -> Result<()> {
    let next = AtomicUsize::new(0);
    thread::scope(|threads| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..at_a_time {
            let (sender, next) = (sender.clone(), &next);
            threads.spawn(move || {
                while let Some(program) = programs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = program.run(&BTreeSet::new());
                    // Nobody listens any more after one that could not be started.
                    if sender.send((*program, result)).is_err() {
                        return;
                    }
                }
            });
        }
        for _ in 0..programs.len() {
            let (program, result) = receiver.recv()?;
            ended(program, result?);
        }
        Ok(())
    })
}
