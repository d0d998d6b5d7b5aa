//! Replays the corpora of the fuzz targets codec_decode and codec_roundtrip.

use std::{fs, path::Path};

#[path = "../../../tests/fuzz/checks/codec_decode.rs"]
mod decode_check;
#[path = "../../../tests/fuzz/checks/codec_roundtrip.rs"]
mod roundtrip_check;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fuzz/corpus")
        .join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        let file = entry.expect("a file").path();
        println!("{}", file.display());
        check(&fs::read(&file).expect("readable"));
        replayed += 1;
    }
    assert!(
        replayed >= 20,
        "only {replayed} inputs in {}",
        folder.display()
    );
}

#[test]
fn the_corpus_of_codec_decode_passes() {
    replay("codec_decode", decode_check::check);
}

#[test]
fn the_corpus_of_codec_roundtrip_passes() {
    replay("codec_roundtrip", roundtrip_check::check);
}
