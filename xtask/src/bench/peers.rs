//! The brokers that `cargo xtask bench peers` compares with.

use crate::setup::clients::{self, Crate, MQTTV5_CLI};
use crate::setup::packages::{self, Package};
use crate::{paths, shell};

/// The program that compares.
pub const PROGRAM: &str = "peers";

/// Tells the program where they are.
pub const FOLDER: &str = "HEADGATE_PEERS";

/// The release of rumqttd.
const RUMQTTD: &str = "0.20.0";

/// mqttd of PyPI.
const MQTTD: &str = "mqttd==0.5.3\n";

/// Installs those that are missing. What can't be installed is said here, and in the table.
pub fn install() {
    let root = paths::peers();
    let of_crates = [
        ("rumqttd", "rumqttd", RUMQTTD),
        ("mqttv5-cli", "mqttv5", MQTTV5_CLI),
    ]
    .map(|(name, program, version)| Crate {
        name,
        program,
        version,
        optimized: true,
        why: "a broker to compare with",
    });
    let mut outcomes = vec![("mosquitto", mosquitto())];
    outcomes.extend(of_crates.map(|of| (of.name, of.install(&root))));
    let what = "mqttd: a broker to compare with";
    outcomes.push((
        "mqttd",
        clients::python_packages(&root.join("venv"), MQTTD, what),
    ));
    for (name, outcome) in outcomes {
        if let Err(error) = outcome {
            eprintln!("missing: {name}: {error:#}");
        }
    }
}

fn mosquitto() -> anyhow::Result<()> {
    if paths::find_program("mosquitto").is_some() {
        return Ok(());
    }
    anyhow::ensure!(shell::is_root(), "only root can install it");
    let why = "a broker to compare with; not started as a service";
    packages::install(&[Package::new("mosquitto", why)])
}
