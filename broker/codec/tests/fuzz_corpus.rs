//! Replays the corpus of the fuzz target codec_decode.

use std::{fs, path::Path};

#[path = "../../../tests/fuzz/checks/codec_decode.rs"]
mod check;

#[test]
fn the_corpus_of_codec_decode_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/codec_decode");
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        let file = entry.expect("a file").path();
        println!("{}", file.display());
        check::check(&fs::read(&file).expect("readable"));
        replayed += 1;
    }
    assert!(
        replayed >= 20,
        "only {replayed} inputs in {}",
        folder.display()
    );
}
