//! Random histories of clients, network, workers and clock against a reference model ([`headgate_sim`]).

/// Seeds of an ordinary run.
const SEEDS: u64 = 10_000;

/// Runs this many seeds instead.
const COUNT: &str = "HEADGATE_SIM_SEEDS";

/// Runs one seed alone, and prints what happens.
const SEED: &str = "HEADGATE_SIM_SEED";

/// The `part`th quarter of the seeds: the parts run side by side.
fn quarter(part: u64) {
    if let Some(seed) = number(SEED) {
        if part == 0 {
            println!("{}", headgate_sim::operations_of(seed));
            check(seed);
        }
        return;
    }
    let count = number(COUNT).unwrap_or(SEEDS);
    (0..count).filter(|seed| seed % 4 == part).for_each(check);
}

fn check(seed: u64) {
    if let Err(failure) = headgate_sim::check_seed(seed) {
        panic!(
            "{failure}\nonce more: {SEED}={seed} cargo test -p headgate-tests --test simulation"
        );
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
    )
}

#[test]
fn seeds_of_the_first_quarter_hold() {
    quarter(0);
}

#[test]
fn seeds_of_the_second_quarter_hold() {
    quarter(1);
}

#[test]
fn seeds_of_the_third_quarter_hold() {
    quarter(2);
}

#[test]
fn seeds_of_the_fourth_quarter_hold() {
    quarter(3);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..50 {
        let hashes =
            [(); 2].map(|()| headgate_sim::check_seed(seed).map_err(|failure| failure.to_string()));
        assert_eq!(hashes[0], hashes[1], "seed {seed}");
    }
    assert_ne!(
        headgate_sim::check_seed(1).ok(),
        headgate_sim::check_seed(2).ok()
    );
}
