//! TCP connections of one worker.
