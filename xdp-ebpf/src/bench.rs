//! Programs that measure the shield: each changes the packet, as packets on a wire differ, and then calls the program
//! under test. BPF_PROG_TEST_RUN alone would give the same packet every time, out of the same warm cache lines.
//! The same with a program that does nothing tells what the change and the call cost.
#![no_std]
#![no_main]
#![expect(
    non_upper_case_globals,
    reason = "as in the shield, a map's name is what bpftool shows"
)]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// A client that the shield knows.
#[repr(C)]
pub struct Client {
    /// Its IPv4 address as it stands in the packet.
    pub source: u64,
    /// The first 16 bytes of its datagrams.
    pub head: [u64; 2],
}

/// A client with a token.
#[repr(C)]
pub struct Holder {
    /// Its IPv4 address as it stands in the packet.
    pub source: u64,
    /// A token of a Retry packet.
    pub token: [u64; 10],
}

/// Clients. Few enough that a short round of runs finds their records in the cache: the records are not the shield's.
const CLIENTS: usize = 1024;

#[btf_map]
pub static clients: Array<Client, CLIENTS> = Array::new();
/// Who has a token.
#[btf_map]
pub static holders: Array<Holder, CLIENTS> = Array::new();
/// The client of the next run.
#[btf_map]
pub static next_client: PerCpuArray<Client, 1> = PerCpuArray::new();
/// 0: the program to measure.
#[btf_map]
pub static measured: ProgramArray<1> = ProgramArray::new();

const SOURCE: usize = 14 + 12;
const PAYLOAD: usize = 14 + 20 + 8;

/// Does nothing.
#[xdp(frags)]
pub fn nothing(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// Drops everything: what a flood costs at least.
#[xdp(frags)]
pub fn drop_all(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// Sends every packet back, cut to the length of a Retry packet: what it costs to carry an answer, whoever makes it.
#[xdp(frags)]
pub fn reflect(ctx: XdpContext) -> u32 {
    /// A Retry packet for a client with a connection ID of 8 bytes.
    const LEN: i32 = PAYLOAD as i32 + 7 + 8 + 8 + 80 + 16;
    // SAFETY: the context is the kernel's own; the helper refuses what doesn't fit.
    let cut = unsafe {
        let now = bpf_xdp_get_buff_len(ctx.ctx) as i32;
        bpf_xdp_adjust_tail(ctx.ctx, LEN - now)
    };
    match (cut, start(&ctx)) {
        (0, Some(start)) => {
            let (to, from) = (get::<u64>(start, 0), get::<u64>(start, 6));
            put(start, 0, from as u32);
            put(start, 4, (from >> 32) as u16);
            put(start, 6, to as u32);
            put(start, 10, (to >> 32) as u16);
            XDP_TX
        }
        _ => XDP_ABORTED,
    }
}

/// Reads what the other programs have written, and nothing else. That their last stores have to reach the next loads is
/// no cost of the shield's: a network card has written a packet long before.
#[xdp(frags)]
pub fn only_read(ctx: XdpContext) -> u32 {
    let Some(start) = start(&ctx) else {
        return XDP_ABORTED;
    };
    let mut seen = u64::from(get::<u32>(start, SOURCE));
    seen ^= get::<u64>(start, PAYLOAD) ^ get::<u64>(start, PAYLOAD + 8);
    seen ^= get::<u64>(start, PAYLOAD + 16) ^ get::<u64>(start, PAYLOAD + 24);
    // Never so, but the processor has to wait for the bytes to know it, as the shield has.
    if seen == 1 { XDP_ABORTED } else { XDP_PASS }
}

/// A short header of a client that the shield knows. The client of the next run is fetched in this one: that its record
/// comes from far caches is no cost of the shield's.
#[xdp(frags)]
pub fn known_client(ctx: XdpContext) -> u32 {
    let index = random() as u32 & (CLIENTS as u32 - 1);
    let (Some(start), Some(fetched)) = (start(&ctx), clients.get(index)) else {
        return XDP_ABORTED;
    };
    let Some(next) = next_client.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: a value of this CPU's, and this program is not interrupted by itself.
    let next = unsafe { &mut *next };
    put(start, SOURCE, next.source as u32);
    put_head(start, next.head[0], next.head[1]);
    next.source = fetched.source;
    next.head[0] = fetched.head[0];
    next.head[1] = fetched.head[1];
    call(&ctx)
}

/// A short header from anywhere with an invented connection ID, which has the first octet of one of the clients'.
#[xdp(frags)]
pub fn forged_cid(ctx: XdpContext) -> u32 {
    let Some(start) = start(&ctx) else {
        return XDP_ABORTED;
    };
    put(start, SOURCE, random() as u32);
    let Some(first) = clients.get(0) else {
        return XDP_ABORTED;
    };
    put_head(start, first.head[0] & 0xffff | random() << 16, random());
    call(&ctx)
}

/// An Initial from anywhere with an invented connection ID of 8 bytes.
#[xdp(frags)]
pub fn random_source(ctx: XdpContext) -> u32 {
    let Some(start) = start(&ctx) else {
        return XDP_ABORTED;
    };
    put(start, SOURCE, random() as u32);
    let dcid = random();
    put_head(start, INITIAL | dcid << 48, dcid >> 16 | 8 << 48);
    call(&ctx)
}

/// The same, whatever the shield has made of the packet in the run before: an answer is shorter, and turned around.
#[xdp(frags)]
pub fn answered_source(ctx: XdpContext) -> u32 {
    const LEN: i32 = PAYLOAD as i32 + 1200;
    const PORT: u16 = 14567;
    // SAFETY: the context is the kernel's own; the helper refuses what doesn't fit.
    unsafe {
        let now = bpf_xdp_get_buff_len(ctx.ctx) as i32;
        if now != LEN && bpf_xdp_adjust_tail(ctx.ctx, LEN - now) != 0 {
            return XDP_ABORTED;
        }
    }
    let Some(start) = start(&ctx) else {
        return XDP_ABORTED;
    };
    put(start, 14 + 2, (LEN as u16 - 14).to_be());
    put(start, SOURCE, random() as u32);
    put(start, PAYLOAD - 8, 40_000u16.to_be());
    put(start, PAYLOAD - 6, PORT.to_be());
    put(start, PAYLOAD - 4, 1208u16.to_be());
    let dcid = random();
    put_head(start, INITIAL | dcid << 48, dcid >> 16 | 8 << 48);
    // The client's connection ID, no token.
    put(start, PAYLOAD + 16, 0x0077_6655_4433_2211u64);
    call(&ctx)
}

/// An Initial with a token that is good.
#[xdp(frags)]
pub fn known_token(ctx: XdpContext) -> u32 {
    const TOKEN: usize = PAYLOAD + 25;
    let index = random() as u32 & (CLIENTS as u32 - 1);
    let Some(holder) = holders.get(index) else {
        return XDP_ABORTED;
    };
    if ctx.data() + TOKEN + 80 > ctx.data_end() {
        return XDP_ABORTED;
    }
    let Some(start) = start(&ctx) else {
        return XDP_ABORTED;
    };
    put(start, SOURCE, holder.source as u32);
    let dcid = random();
    put_head(start, INITIAL | dcid << 48, dcid >> 16 | 8 << 48);
    // The client's connection ID, and a length of 80.
    put(start, PAYLOAD + 16, 0x4077_6655_4433_2211u64);
    put(start, PAYLOAD + 24, 0x50u8);
    let mut word = 0;
    while word < 10 {
        put(start, TOKEN + 8 * word, holder.token[word]);
        word += 1;
    }
    call(&ctx)
}

/// Type Initial, version 1, a connection ID of 8 bytes, and the client's own of 8 bytes.
const INITIAL: u64 = u64::from_le_bytes([0xc0, 0, 0, 0, 1, 8, 0, 0]);

/// The packet as it is.
#[xdp(frags)]
pub fn unchanged(ctx: XdpContext) -> u32 {
    call(&ctx)
}

#[inline(always)]
fn call(ctx: &XdpContext) -> u32 {
    // SAFETY: nothing here needs to be dropped.
    unsafe { measured.tail_call(ctx, 0) };
    XDP_ABORTED
}

/// The packet, if it is long enough for what is written here.
#[inline(always)]
fn start(ctx: &XdpContext) -> Option<*mut u8> {
    if ctx.data() + PAYLOAD + 32 > ctx.data_end() {
        None
    } else {
        Some(ctx.data() as *mut u8)
    }
}

#[inline(always)]
fn put<T>(start: *mut u8, offset: usize, value: T) {
    // SAFETY: within the bytes that `start` compared with the packet's end; this target's stores may be unaligned.
    unsafe { *start.add(offset).cast::<T>() = value };
}

/// Whole words, as the shield reads them: a load that spans two stores would have to wait for both.
#[inline(always)]
fn put_head(start: *mut u8, first: u64, second: u64) {
    put(start, PAYLOAD, first);
    put(start, PAYLOAD + 8, second);
}

#[inline(always)]
fn get<T: Copy>(start: *mut u8, offset: usize) -> T {
    // SAFETY: as in `put`.
    unsafe { *start.add(offset).cast::<T>() }
}

#[inline(always)]
fn random() -> u64 {
    // SAFETY: the helper has no arguments and no preconditions.
    unsafe { u64::from(bpf_get_prandom_u32()) << 32 | u64::from(bpf_get_prandom_u32()) }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
