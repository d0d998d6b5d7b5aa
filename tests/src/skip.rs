//! Tests that can't be tried on this machine say so, and are not counted as passed.

use std::fs::OpenOptions;
use std::io::Write;

/// The file that collects what was skipped; `cargo xtask test` sets it, and subtracts what it finds there from the
/// passed tests.
pub const SKIP_LOG_VARIABLE: &str = "HEADGATE_SKIP_LOG";

/// Says why the calling test can't be tried here, and returns from it.
///
/// ```
/// fn needs_root() {
///     if !headgate_tests::skip::is_root() {
///         headgate_tests::skip!("needs root");
///     }
/// }
/// ```
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        let name = ::std::any::type_name_of_val(&here).trim_end_matches("::here");
        $crate::skip::skip(name.trim_end_matches("::{{closure}}"), &format!($($reason)*));
        return;
    }};
}

/// Writes `SKIPPED name: reason`; the test then has to return. [`skip!`](crate::skip!) does both, and knows the name.
///
/// # Panics
/// When the log can't be written: a test that vanished unseen would be worse.
pub fn skip(name: &str, reason: &str) {
    let line = format!("SKIPPED {name}: {}\n", reason.replace('\n', " "));
    print!("{line}");
    let Some(path) = std::env::var_os(SKIP_LOG_VARIABLE) else {
        return;
    };
    // One write of a short line to a file opened for appending is not torn by the other tests'.
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    assert!(written.is_ok(), "{}: {written:?}", path.display());
}

/// Whether this process is root, which the tests with namespaces and kernel programs need.
pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1));
        effective == Some("0")
    })
}
