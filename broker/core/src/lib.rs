//! Sessions, routing, retained messages, limits and timers of one worker, as a state machine
//! without clock, I/O or unsafe code: it takes an [`Input`] and the time, and returns
//! [`Output`]s, which the worker's driver executes.
#![forbid(unsafe_code)]

mod io;

pub use io::*;
