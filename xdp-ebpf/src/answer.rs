//! Answers that are written into the packet that asked, and sent back to where it came from.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_get_prandom_u32, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
    bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use headgate_common::route::{CID_LEN_MAX, VERSION_1};

use crate::maps;
use crate::verifier::{load, mask, one_to, store};

/// The kernel refused a step, or the packet is not what its verdict said. The packet may be half changed: drop it.
pub struct Failed;

/// Helpers answer 0 or an error number.
#[inline(always)]
pub fn done(result: i64) -> Result<(), Failed> {
    if result == 0 { Ok(()) } else { Err(Failed) }
}

/// Turns the packet into a Version Negotiation packet (RFC 9000 §17.2.1) that offers version 1 and one that exists
/// only to be ignored (RFC 9000 §6.3).
#[inline(always)]
pub fn version_negotiation(ctx: &XdpContext, payload: usize) -> Result<(), Failed> {
    let Some(scratch) = maps::scratch.get_ptr_mut(0) else {
        return Err(Failed);
    };
    let out = scratch.cast::<u8>();
    let mut lengths = [0u8; 8];
    // SAFETY: every write goes to the 384 bytes of the scratch buffer, at offsets that the masks keep below 64 + 31;
    // the helpers check what they read from the packet.
    let length = unsafe {
        clear::<16>(out.cast());
        done(bpf_xdp_load_bytes(
            ctx.ctx,
            payload as u32 + 5,
            lengths.as_mut_ptr().cast(),
            1,
        ))?;
        let dcid_len = u64::from(lengths[0]);
        if dcid_len > u64::from(CID_LEN_MAX) {
            return Err(Failed);
        }
        done(bpf_xdp_load_bytes(
            ctx.ctx,
            payload as u32 + 6 + dcid_len as u32,
            lengths.as_mut_ptr().cast(),
            1,
        ))?;
        let scid_len = u64::from(lengths[0]);
        if scid_len > u64::from(CID_LEN_MAX) {
            return Err(Failed);
        }
        let random = bpf_get_prandom_u32();
        // RFC 9000 §17.2.1: the bits after the header form are arbitrary; RFC 9287 wants them to vary.
        *out = 0x80 | random as u8;
        // The client's connection IDs change places (RFC 9000 §6.1).
        *out.add(5) = scid_len as u8;
        copy_cid(ctx, payload as u64 + 7 + dcid_len, out.add(6), scid_len)?;
        let at = 6 + scid_len;
        *out.add(mask::<0x3f>(at) as usize) = dcid_len as u8;
        copy_cid(
            ctx,
            payload as u64 + 6,
            out.add(mask::<0x3f>(at + 1) as usize),
            dcid_len,
        )?;
        let versions = out.add(mask::<0x3f>(at + 1 + dcid_len) as usize);
        store(versions, VERSION_1.to_be());
        store(versions.add(4), (random & 0xf0f0_f0f0) | 0x0a0a_0a0a);
        at + 1 + dcid_len + 8
    };
    reply(ctx, payload, out, length)
}

/// Fills words with zeros.
///
/// # Safety
/// There must be so many from `to`.
#[inline(always)]
pub unsafe fn clear<const WORDS: usize>(to: *mut u64) {
    let mut word = 0;
    while word < WORDS {
        // Volatile, or it becomes a call of memset.
        // SAFETY: the caller's promise.
        unsafe { to.add(word).write_volatile(0) };
        word += 1;
    }
}

/// Copies a connection ID of the packet.
///
/// # Safety
/// `to` must have room for 32 bytes.
#[inline(always)]
pub unsafe fn copy_cid(ctx: &XdpContext, from: u64, to: *mut u8, len: u64) -> Result<(), Failed> {
    if len == 0 {
        return Ok(());
    }
    // SAFETY: the caller leaves 32 bytes from `to`; the helper checks the packet's bounds.
    done(unsafe { bpf_xdp_load_bytes(ctx.ctx, from as u32, to.cast(), one_to::<0x1f>(len)) })
}

/// Cuts the packet to `len` bytes of UDP payload, which are taken from `out` (zero-padded to whole words), and turns
/// it around: addresses, ports, lengths and checksums.
#[inline(always)]
pub fn reply(ctx: &XdpContext, payload: usize, out: *mut u8, len: u64) -> Result<(), Failed> {
    let len = mask::<0xff>(len);
    // SAFETY: the context is the kernel's own; the helper refuses what doesn't fit.
    unsafe {
        let now = bpf_xdp_get_buff_len(ctx.ctx) as i32;
        done(bpf_xdp_adjust_tail(
            ctx.ctx,
            payload as i32 + len as i32 - now,
        ))?;
    }
    // SAFETY: `out` has 256 zero-padded bytes, and `padded` is at most 252.
    let sum = unsafe {
        let padded = mask::<0xfc>(len + 3);
        bpf_csum_diff(core::ptr::null_mut(), 0, out.cast(), padded as u32, 0)
    };
    let sum = sum as u64 & 0xffff_ffff;
    match payload {
        42 => turn_ipv4::<14>(ctx, len, sum)?,
        46 => turn_ipv4::<18>(ctx, len, sum)?,
        62 => turn_ipv6::<14>(ctx, len, sum)?,
        66 => turn_ipv6::<18>(ctx, len, sum)?,
        _ => return Err(Failed),
    }
    // SAFETY: `out` has 256 bytes; the helper checks the packet's bounds.
    done(unsafe {
        bpf_xdp_store_bytes(
            ctx.ctx,
            payload as u32,
            out.cast::<c_void>(),
            one_to::<0xff>(len),
        )
    })
}

/// The packet's linear part, if it reaches `end` bytes.
#[inline(always)]
pub fn linear(ctx: &XdpContext, end: usize) -> Result<*mut u8, Failed> {
    if ctx.data() + end > ctx.data_end() {
        Err(Failed)
    } else {
        Ok(ctx.data() as *mut u8)
    }
}

#[inline(always)]
fn turn_ipv4<const IP: usize>(ctx: &XdpContext, len: u64, payload_sum: u64) -> Result<(), Failed> {
    const TTL: u8 = 64;
    let start = linear(ctx, IP + 28)?;
    let udp_len = (len as u16 + 8).to_be();
    // SAFETY: `linear` has compared the end of the UDP header with the end of the packet.
    unsafe {
        turn_ethernet(start);
        let ip = start.add(IP);
        let (source, destination): (u32, u32) = (load(ip.add(12)), load(ip.add(16)));
        store(ip.add(12), destination);
        store(ip.add(16), source);
        // Neither the client's service class nor its congestion mark is ours.
        store(ip.add(1), 0u8);
        store(ip.add(2), (len as u16 + 28).to_be());
        store(ip.add(8), TTL);
        store(ip.add(10), 0u16);
        let mut header_sum = 0;
        let mut at = 0;
        while at < 20 {
            header_sum += u64::from(load::<u16>(ip.add(at)));
            at += 2;
        }
        store(ip.add(10), fold(header_sum));
        turn_udp(
            ip.add(20),
            udp_len,
            payload_sum + u64::from(source) + u64::from(destination),
        );
    }
    Ok(())
}

#[inline(always)]
fn turn_ipv6<const IP: usize>(ctx: &XdpContext, len: u64, payload_sum: u64) -> Result<(), Failed> {
    const HOP_LIMIT: u8 = 64;
    let start = linear(ctx, IP + 48)?;
    let udp_len = (len as u16 + 8).to_be();
    // SAFETY: `linear` has compared the end of the UDP header with the end of the packet.
    unsafe {
        turn_ethernet(start);
        let ip = start.add(IP);
        let source: [u64; 2] = [load(ip.add(8)), load(ip.add(16))];
        let destination: [u64; 2] = [load(ip.add(24)), load(ip.add(32))];
        store(ip.add(8), destination[0]);
        store(ip.add(16), destination[1]);
        store(ip.add(24), source[0]);
        store(ip.add(32), source[1]);
        // Neither the client's traffic class nor its flow label is ours.
        store(ip, 0x6000_0000u32.to_be());
        store(ip.add(4), udp_len);
        store(ip.add(7), HOP_LIMIT);
        let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
        let sum =
            halves(source[0]) + halves(source[1]) + halves(destination[0]) + halves(destination[1]);
        turn_udp(ip.add(40), udp_len, payload_sum + sum);
    }
    Ok(())
}

/// # Safety
/// `start` must point to at least 14 bytes of the packet.
#[inline(always)]
unsafe fn turn_ethernet(start: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let (to_high, to_low): (u32, u16) = (load(start), load(start.add(4)));
        let (from_high, from_low): (u32, u16) = (load(start.add(6)), load(start.add(10)));
        store(start, from_high);
        store(start.add(4), from_low);
        store(start.add(6), to_high);
        store(start.add(10), to_low);
    }
}

/// `length` is in network order, `sum` covers the payload and the addresses (RFC 768, RFC 8200 §8.1).
///
/// # Safety
/// `udp` must point to at least 8 bytes of the packet.
#[inline(always)]
unsafe fn turn_udp(udp: *mut u8, length: u16, sum: u64) {
    const PROTOCOL: u64 = 17u16.to_be() as u64;
    // SAFETY: the caller's promise.
    unsafe {
        let (source, destination): (u16, u16) = (load(udp), load(udp.add(2)));
        store(udp, destination);
        store(udp.add(2), source);
        store(udp.add(4), length);
        // The length counts twice: in the pseudo-header and in the header.
        let checksum = fold(
            sum + u64::from(source) + u64::from(destination) + 2 * u64::from(length) + PROTOCOL,
        );
        store(udp.add(6), if checksum == 0 { 0xffff } else { checksum });
    }
}

/// RFC 1071: the one's complement sum of 16-bit words, complemented.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
