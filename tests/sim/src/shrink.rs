//! Runs a list of operations where a panic is an answer, and makes lists that go wrong short.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use super::operations::{Scenario, Step};
use super::run::perform;
use super::world::World;

/// Runs that are tried to make a list shorter, at most.
const ATTEMPTS_MAX: usize = 1_500;

/// Runs a list; the hash of what happened, or what went wrong.
pub(super) fn attempt(scenario: &Scenario, steps: &[Step]) -> Result<u64, String> {
    let mut world = World::new(scenario, false);
    caught(|| perform(&mut world, steps)).map(|()| world.trace_hash())
}

/// What goes wrong in a list, and what happens before that.
pub(super) fn explain(scenario: &Scenario, steps: &[Step]) -> Option<(String, Vec<String>)> {
    let mut world = World::new(scenario, true);
    let complaint = caught(|| perform(&mut world, steps)).err()?;
    Some((complaint, world.log.take().unwrap_or_default()))
}

/// Leaves out operations, in halves, quarters and so on, for as long as the list still goes wrong (delta debugging).
pub(super) fn shorten(scenario: &Scenario, steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    let mut attempts = 0;
    let mut size = steps.len().div_ceil(2);
    loop {
        let mut from = 0;
        let mut is_shorter = false;
        while from < steps.len() && attempts < ATTEMPTS_MAX {
            let to = (from + size).min(steps.len());
            let candidate: Vec<Step> = [&steps[..from], &steps[to..]].concat();
            attempts += 1;
            if attempt(scenario, &candidate).is_err() {
                steps = candidate;
                is_shorter = true;
            } else {
                from = to;
            }
        }
        if attempts >= ATTEMPTS_MAX || (size == 1 && !is_shorter) {
            return steps;
        }
        size = if size == 1 { 1 } else { size.div_ceil(2) };
    }
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What a panic says, without its being printed.
fn caught(run: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IS_QUIET.get() {
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                LAST_PLACE.set(place);
            } else {
                usual(info);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    IS_QUIET.set(false);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| {
            payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
        });
        format!("{} ({})", text.unwrap_or_default(), LAST_PLACE.take())
    })
}

thread_local! {
    static LAST_PLACE: Cell<String> = const { Cell::new(String::new()) };
}
