//! Replays the corpora of the fuzz targets framing, session, store_values and streams.

use std::{fs, path::Path};

#[path = "../fuzz/checks/framing.rs"]
mod framing_check;
#[path = "../fuzz/checks/session.rs"]
mod session_check;
#[path = "../fuzz/checks/store_values.rs"]
mod store_values_check;
#[path = "../fuzz/checks/streams.rs"]
mod streams_check;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        let file = entry.expect("a file").path();
        println!("{}", file.display());
        check(&fs::read(&file).expect("readable"));
        inputs += 1;
    }
    assert!(inputs >= 20, "only {inputs} inputs in {}", folder.display());
}

#[test]
fn the_corpus_of_framing_passes() {
    replay("framing", framing_check::check);
}

#[test]
fn the_corpus_of_session_passes() {
    replay("session", session_check::check);
}

#[test]
fn the_corpus_of_store_values_passes() {
    replay("store_values", store_values_check::check);
}

#[test]
fn the_corpus_of_streams_passes() {
    replay("streams", streams_check::check);
}
