//! Finds the eBPF object that `cargo xtask build-ebpf` makes. Without it the broker is built all the same, and says at
//! start that it has no kernel part.

use std::path::PathBuf;

fn main() {
    // Cargo's word at run time, not at compile time: a build folder may have been copied from elsewhere.
    let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = PathBuf::from(own).join("..");
    let object = root.join("xdp-ebpf/target/bpfel-unknown-none/release/headgate-xdp");
    println!("cargo::rustc-check-cfg=cfg(headgate_bpf_object)");
    println!("cargo::rerun-if-changed=build.rs");
    match object.canonicalize() {
        Ok(object) => {
            println!("cargo::rustc-cfg=headgate_bpf_object");
            println!("cargo::rustc-env=HEADGATE_BPF_OBJECT={}", object.display());
            println!("cargo::rerun-if-changed={}", object.display());
        }
        // A file that is missing would make Cargo run this, and build the broker, every time.
        Err(_) => println!(
            "cargo::rerun-if-changed={}",
            root.join("xdp-ebpf").display()
        ),
    }
}
