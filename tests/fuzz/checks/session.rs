//! Whatever clients, network and clock do, sessions keep to the model. The fuzz target and the replay of its corpus
//! share this.

/// `data`: a list of operations, a byte for each choice.
pub fn check(data: &[u8]) {
    if let Err(failure) = headgate_sim::check_bytes(data) {
        panic!("{failure}");
    }
}
