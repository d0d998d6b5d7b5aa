//! Attaches the shield to interfaces: adopts what an earlier process left there, or attaches anew.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};

use super::error::{KernelError, chain, is_permission};
use super::loader::shield_program;
use super::pins::{self, PinFolder};
use super::settings::{KernelSettings, Mode};
use super::status::{AttachedMode, InterfaceStatus};

pub(super) fn explain(error: ProgramError, settings: &KernelSettings) -> KernelError {
    if is_permission(&error) {
        return KernelError::NotPermitted {
            pin_dir: settings.pin_dir.clone(),
        };
    }
    KernelError::Refused {
        what: "the kernel programs",
        reason: chain(&error),
    }
}

/// Attaches the shield to every interface and detaches it from those that are no longer named.
pub(super) fn attach_all(
    ebpf: &mut Ebpf,
    settings: &KernelSettings,
    pins: &PinFolder,
) -> Result<Vec<InterfaceStatus>, KernelError> {
    let mut statuses = Vec::new();
    let mut keep = Vec::new();
    for name in &settings.interfaces {
        let program = shield_program(ebpf).map_err(|error| explain(error, settings))?;
        let (status, pin) = attach(program, name, settings, pins)?;
        keep.extend(pin);
        statuses.push(status);
    }
    pins.remove_links(&keep)?;
    Ok(statuses)
}

fn attach(
    program: &mut Xdp,
    name: &str,
    settings: &KernelSettings,
    pins: &PinFolder,
) -> Result<(InterfaceStatus, Option<PathBuf>), KernelError> {
    let status = |mode, why_not_better, adopted| InterfaceStatus {
        name: name.to_owned(),
        mode,
        why_not_better,
        adopted,
    };
    let modes: &[AttachedMode] = match settings.mode {
        Mode::Auto => &[AttachedMode::Native, AttachedMode::Generic],
        Mode::Native => &[AttachedMode::Native],
        Mode::Generic => &[AttachedMode::Generic],
        Mode::Off => {
            return Ok((
                status(AttachedMode::None, Some("turned off".to_owned()), false),
                None,
            ));
        }
    };
    let index = CString::new(name).map_or(0, |name| {
        // SAFETY: the name is a string with its end.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    });
    let mut why_not = (index == 0).then(|| "there is no such interface".to_owned());
    let modes = if index == 0 { &[] } else { modes };
    for mode in [AttachedMode::Native, AttachedMode::Generic] {
        let path = pins.link(mode, index);
        if !modes.contains(&mode) {
            pins::remove_link(&path)?;
        } else if adopt(program, &path) {
            let why_not = (mode == AttachedMode::Generic && settings.mode == Mode::Auto)
                .then(|| "adopted in the mode that it had".to_owned());
            return Ok((status(mode, why_not, true), Some(path)));
        }
    }
    for &mode in modes {
        let path = pins.link(mode, index);
        match attach_new(program, index, mode, &path) {
            Ok(()) => return Ok((status(mode, why_not, false), Some(path))),
            Err(reason) => {
                let earlier = why_not
                    .map(|reason| format!("{reason}; "))
                    .unwrap_or_default();
                why_not = Some(format!("{earlier}{}: {reason}", mode.name()));
            }
        }
    }
    let why_not = why_not.unwrap_or_default();
    if settings.mode == Mode::Auto {
        return Ok((status(AttachedMode::None, Some(why_not), false), None));
    }
    let mode = modes.first().map_or("no", |mode| mode.name());
    Err(KernelError::Attach {
        interface: name.to_owned(),
        mode,
        reason: why_not,
    })
}

/// Puts the program in the place of an earlier process's, without a packet in between that nobody sees.
fn adopt(program: &mut Xdp, path: &Path) -> bool {
    let Some(pinned) = pins::open_link(path) else {
        return false;
    };
    let swapped = XdpLink::try_from(FdLink::from(pinned))
        .ok()
        .and_then(|link| {
            let id = program.attach_to_link(link).ok()?;
            program.take_link(id).ok()
        });
    // If it failed, the interface is gone or another one has its index, and the pin is of no use.
    if swapped.is_none() {
        let _ = pins::remove_link(path);
    }
    swapped.is_some()
}

/// Attaches and pins: the pin alone then holds the link.
fn attach_new(
    program: &mut Xdp,
    index: u32,
    mode: AttachedMode,
    path: &Path,
) -> Result<(), String> {
    let flags = if mode == AttachedMode::Native {
        XdpMode::Driver
    } else {
        XdpMode::Skb
    };
    let id = program
        .attach_to_if_index(index, flags)
        .map_err(|error| reason(&error))?;
    let link = program.take_link(id).map_err(|error| reason(&error))?;
    let link = FdLink::try_from(link).map_err(|error| chain(&error))?;
    link.pin(path).map_err(|error| chain(&error))?;
    Ok(())
}

fn reason(error: &ProgramError) -> String {
    if let ProgramError::SyscallError(syscall) = error {
        match syscall.io_error.raw_os_error() {
            Some(libc::EBUSY) => return "another XDP program is attached".to_owned(),
            Some(libc::EOPNOTSUPP) => return "the driver does not support it".to_owned(),
            _ => {}
        }
    }
    chain(error)
}

/// Why packets are not sent to their worker's CPU.
pub(super) fn why_no_cpumap(
    settings: &KernelSettings,
    interfaces: &[InterfaceStatus],
    workers: usize,
) -> Option<String> {
    if !settings.steering.cpus() {
        return Some("turned off".to_owned());
    }
    if let Some(interface) = interfaces
        .iter()
        .find(|interface| interface.mode == AttachedMode::Generic)
    {
        return Some(format!(
            "{} has generic XDP, which cannot send packets to CPUs",
            interface.name
        ));
    }
    if interfaces
        .iter()
        .all(|interface| interface.mode == AttachedMode::None)
    {
        return Some("no interface has XDP".to_owned());
    }
    (workers < 2).then(|| "there is one worker only".to_owned())
}
