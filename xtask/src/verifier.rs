//! What the kernel's verifier says of the kernel programs: how many instructions it had to follow.

use anyhow::{Context, Result, bail};
use aya::programs::{Program, SkReuseport, Xdp};
use aya::{Ebpf, EbpfLoader};
use std::path::Path;

/// Instructions that the verifier follows before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS` of linux/bpf.h).
const LIMIT: u32 = 1_000_000;
/// So much of it may be used, in percent: other kernels' verifiers follow more paths of the same program.
const PERCENT_MAX: u32 = 60;
/// The global of the kernel programs that says what they log: nothing, as in a broker that runs.
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

/// Loads every program of an object and says how many instructions the verifier followed, a line for each.
///
/// # Errors
/// The kernel refuses a program, or one is above [`PERCENT_MAX`].
pub fn check(object: &Path) -> Result<Vec<String>> {
    if !is_root() {
        return Ok(vec![
            "verified instructions: not checked, loading the programs needs root".to_owned(),
        ]);
    }
    let mut ebpf = EbpfLoader::new()
        .override_global(LOG_LEVEL, &0u8, true)
        .load_file(object)
        .with_context(|| format!("the maps of {}", object.display()))?;
    let mut lines = Vec::new();
    for name in names(&ebpf) {
        let count = verified(&mut ebpf, &name)
            .with_context(|| format!("the kernel refuses the program {name}"))?;
        let Some(count) = count else {
            lines.push(format!(
                "{name}: this kernel doesn't count verified instructions"
            ));
            continue;
        };
        let percent = f64::from(count) * 100.0 / f64::from(LIMIT);
        lines.push(format!(
            "{name}: {count} verified instructions, {percent:.1} % of the verifier's limit"
        ));
        if count > LIMIT / 100 * PERCENT_MAX {
            bail!(
                "{name} takes {count} verified instructions: more than {PERCENT_MAX} % of {LIMIT}"
            );
        }
    }
    Ok(lines)
}

fn names(ebpf: &Ebpf) -> Vec<String> {
    let mut names: Vec<_> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    names
}

fn verified(ebpf: &mut Ebpf, name: &str) -> Result<Option<u32>> {
    let program = ebpf.program_mut(name).context("it is listed")?;
    match program {
        Program::Xdp(_) => {
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
        }
        Program::SkReuseport(_) => {
            let program: &mut SkReuseport = program.try_into()?;
            program.load()?;
        }
        _ => bail!("a kind of program that is not known here"),
    }
    Ok(program.info()?.verified_instruction_count())
}

fn is_root() -> bool {
    // The owner of a process's own folder in /proc is its effective user.
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
