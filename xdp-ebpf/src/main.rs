//! headgate's kernel programs: `shield` looks at every packet that arrives (XDP), `steer` picks the worker's socket
//! (sk_reuseport). What they decide is written in headgate-common, and tested there; here are the maps, the packet
//! access, and what a verdict means for the kernel.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)] // see verifier.rs

mod answer;
mod maps;
mod packet;
mod retry;
mod verifier;

use aya_ebpf::bindings::sk_reuseport_md;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_skb_load_bytes};
use aya_ebpf::macros::{sk_reuseport, xdp};
use aya_ebpf::programs::{SkReuseportContext, XdpContext};
use aya_ebpf::{EbpfContext as _, bindings::sk_action};
use headgate_common::records::{WorkerState, socket_index};
use headgate_common::route::{Class, Routing, classify};
use headgate_common::shield::{Environment as _, Judgement, Verdict, hash_of_prefix, judge};
use headgate_common::talkers::{TALKER_CELLS, is_sampled};
use headgate_common::{AnswerReason, DropReason, Head, NO_SLOT, PassReason, SocketReason};

use crate::maps::Maps;
use crate::packet::XdpPacket;

/// Judges every packet of the interface. What happens to it is counted, and by its number it may be one that is looked at for
/// the sketch of sources.
#[xdp(frags)]
pub fn shield(ctx: XdpContext) -> u32 {
    let Judgement {
        verdict,
        bytes,
        prefix,
    } = judge(&XdpPacket::new(&ctx), &Maps);
    let (action, number) = match verdict {
        Verdict::Ignore => return XDP_PASS,
        Verdict::Pass(reason, slot) => pass(&ctx, reason, slot, bytes),
        Verdict::Drop(reason) => drop_packet(&ctx, reason, bytes),
        Verdict::Answer(reason, payload) => answer(&ctx, reason, payload, bytes),
    };
    if is_sampled(number) {
        note_talker(prefix, action == XDP_DROP);
    }
    action
}

#[inline(always)]
fn pass(ctx: &XdpContext, reason: PassReason, slot: u8, bytes: u32) -> (u32, u64) {
    let action = if slot == NO_SLOT {
        XDP_PASS
    } else {
        redirect(slot)
    };
    let number = Maps::count_pass(reason, bytes, action != XDP_PASS);
    log(ctx, "pass", || reason.name());
    (action, number)
}

/// Sends the packet to the CPU of the slot's worker, unless it is there already.
#[inline(always)]
fn redirect(slot: u8) -> u32 {
    let cpumap = Maps.config().is_some_and(|config| config.cpumap != 0);
    if !cpumap {
        return XDP_PASS;
    }
    let Some(cpu) = Maps::worker_cpu(slot) else {
        return XDP_PASS;
    };
    // SAFETY: the helper has no arguments and no preconditions.
    if cpu == unsafe { bpf_get_smp_processor_id() } {
        return XDP_PASS;
    }
    maps::cpus
        .redirect(cpu, XDP_PASS.into())
        .unwrap_or(XDP_PASS)
}

#[inline(always)]
fn drop_packet(ctx: &XdpContext, reason: DropReason, bytes: u32) -> (u32, u64) {
    let number = Maps::count_drop(reason, bytes);
    log(ctx, "drop", || reason.name());
    (XDP_DROP, number)
}

#[inline(always)]
fn answer(ctx: &XdpContext, reason: AnswerReason, payload: usize, bytes: u32) -> (u32, u64) {
    let written = match reason {
        AnswerReason::VersionNegotiation => answer::version_negotiation(ctx, payload),
        AnswerReason::Retry
        | AnswerReason::RetryForeignToken
        | AnswerReason::RetryInvalidNewToken => retry::retry(ctx, payload),
    };
    match written {
        Ok(()) => {
            let number = Maps::count_answer(reason, bytes);
            log(ctx, "answer", || reason.name());
            (XDP_TX, number)
        }
        Err(answer::Failed) => drop_packet(ctx, DropReason::AnswerFailed, bytes),
    }
}

/// For debugging. The level is a constant that the loader sets: at the usual level 0 the verifier removes all of it. The
/// reason's name is looked up only then: a dozen comparisons that nothing else needs.
#[inline(always)]
fn log(ctx: &XdpContext, verdict: &str, name: impl FnOnce() -> &'static str) {
    use aya_log_ebpf::macro_support::{Level, level_enabled};
    if level_enabled(Level::Debug) {
        aya_log_ebpf::debug!(ctx, "{} {}", verdict, name());
    }
}

/// Picks the socket of the worker that a datagram belongs to.
#[sk_reuseport]
pub fn steer(ctx: SkReuseportContext) -> u32 {
    const UDP_HEADER_LEN: u32 = 8;
    let mut words = [0u64; 4];
    // Never direct access: a datagram from a local sender lies in page fragments.
    // SAFETY: `words` has the 32 bytes that the helper writes.
    let loaded =
        unsafe { bpf_skb_load_bytes(ctx.as_ptr(), UDP_HEADER_LEN, words.as_mut_ptr().cast(), 32) };
    let bytes = ctx.len() as u32;
    let (Some(secrets), Some(steering)) = (Maps.secrets(), Maps.steering()) else {
        return sk_action::SK_DROP;
    };
    if loaded != 0 {
        return refuse(bytes);
    }
    let Routing { class, slot, .. } = classify(
        &Head(words),
        bytes.saturating_sub(UDP_HEADER_LEN),
        secrets,
        steering,
    );
    if matches!(class, Class::Refuse) {
        return refuse(bytes);
    }
    // Without a selection the kernel would choose a worker that has no use for the datagram.
    if slot == NO_SLOT || !select(&ctx, slot) {
        Maps::count_socket(SocketReason::NoSocket, bytes);
        return sk_action::SK_DROP;
    }
    let own = matches!(class, Class::Own);
    Maps::count_socket(
        if own {
            SocketReason::OwnCid
        } else {
            SocketReason::Hashed
        },
        bytes,
    );
    sk_action::SK_PASS
}

/// Selects the slot's socket. A socket can stand at one place of the array only, and one of both IP versions stands
/// where those of IPv6 do; the kernel refuses a socket that doesn't listen where the datagram went.
#[inline(always)]
fn select(ctx: &SkReuseportContext, slot: u8) -> bool {
    if !is_ipv6(ctx)
        && maps::sockets_by_slot
            .select_reuseport(ctx, socket_index(slot, false))
            .is_ok()
    {
        return true;
    }
    maps::sockets_by_slot
        .select_reuseport(ctx, socket_index(slot, true))
        .is_ok()
}

#[inline(always)]
fn is_ipv6(ctx: &SkReuseportContext) -> bool {
    const ETHERTYPE_IPV6: u32 = 0x86ddu16.to_be() as u32;
    // SAFETY: the context is the kernel's own.
    unsafe { (*ctx.as_ptr().cast::<sk_reuseport_md>()).eth_protocol == ETHERTYPE_IPV6 }
}

#[inline(always)]
fn refuse(bytes: u32) -> u32 {
    Maps::count_socket(SocketReason::Refused, bytes);
    sk_action::SK_DROP
}

/// Votes for a packet's prefix. Only for some packets: the hash alone costs as much as a check.
#[inline(never)]
fn note_talker(prefix: u64, is_dropped: bool) {
    let Some(secrets) = Maps.secrets() else {
        return;
    };
    let cell = hash_of_prefix(prefix, secrets) & (TALKER_CELLS - 1);
    if let Some(cell) = maps::talkers.get_ptr_mut(cell) {
        // SAFETY: a map's value is there until the program ends, and aligned; it is of this CPU.
        unsafe { &mut *cell }.vote(prefix, is_dropped);
    }
}

impl Maps {
    /// The CPU of a slot's worker.
    #[inline(always)]
    fn worker_cpu(slot: u8) -> Option<u32> {
        let worker = maps::workers.get_ptr(slot.into())?;
        // SAFETY: the map's values are records of this shape. The state is read as a number, because anybody with
        // bpftool may have written anything.
        let (state, cpu) = unsafe { (*(&raw const (*worker).state).cast::<u32>(), (*worker).cpu) };
        (state != WorkerState::Free as u32).then_some(cpu)
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing here can panic: the verifier has seen that this is never reached.
    loop {}
}
