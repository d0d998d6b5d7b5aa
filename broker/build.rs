//! Finds the eBPF object that `cargo xtask build-ebpf` makes. Without it the broker is built all the same, and says at
//! start that it has no kernel part.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // Cargo's word at run time, not at compile time: a build folder may have been copied from elsewhere.
    let own = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = PathBuf::from(own).join("..");
    let object = root.join("xdp-ebpf/target/bpfel-unknown-none/release/headgate-xdp");
    println!("cargo::rerun-if-changed=build.rs");
    // An expression, and not a cfg: what is compiled, and so what is checked, is the same with and without the object.
    let expression = match object.canonicalize() {
        Ok(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            format!("Some(aya::include_bytes_aligned!({:?}))", object.display())
        }
        Err(_) => {
            // A file that is missing would make Cargo run this, and build the broker, every time.
            let sources = root.join("xdp-ebpf");
            println!("cargo::rerun-if-changed={}", sources.display());
            "None".to_owned()
        }
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("object.rs"), expression)
}
