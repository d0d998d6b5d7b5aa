//! Finds the eBPF object that `cargo xtask build-ebpf` makes. Without it the broker is built all the same, and says at
//! start that it has no kernel part.

use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
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
