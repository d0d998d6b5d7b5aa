//! Retry packets (RFC 9000 §17.2.5).

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use headgate_common::frame::Source;
use headgate_common::ghash::{WORDS, retry_tag};
use headgate_common::route::{CID_LEN_MAX, FIRST_DCID_LEN_MIN, VERSION_1};
use headgate_common::shield::Environment as _;
use headgate_common::token::{OriginalCid, RETRY_TOKEN_LEN, Sender};

use crate::answer::{Failed, clear, copy_cid, done, linear, reply};
use crate::maps::{self, Maps};
use crate::verifier::{load, mask, store};

/// Length of the Source Connection ID of our Retry packets: not that of our own, and long enough to be a client's first.
const SCID_LEN: u64 = 8;
/// Words of the answer that have to be zero where nothing is written: the longest pseudo-packet, its tag, and what
/// fills a checksum's last word.
const USED_WORDS: usize =
    (1 + 2 * CID_LEN_MAX as usize + 7 + 1 + SCID_LEN as usize + RETRY_TOKEN_LEN + TAG_LEN as usize)
        .div_ceil(8)
        + 1;
/// Length of the Retry Integrity Tag (RFC 9001 §5.8).
const TAG_LEN: u64 = 16;

/// Turns an Initial into a Retry packet. Its verdict has checked the lengths of its connection IDs.
#[inline(always)]
pub fn retry(ctx: &XdpContext, payload: usize) -> Result<(), Failed> {
    let Some(scratch) = maps::scratch.get_ptr_mut(0) else {
        return Err(Failed);
    };
    let Some(keys) = Maps.token_keys() else {
        return Err(Failed);
    };
    let sender = sender(ctx, payload)?;
    let now_ns = Maps.unix_ns();
    let now_s = (now_ns / 1_000_000_000) as u32;
    let mut lengths = [0u8; 8];
    // SAFETY: the scratch buffer has 384 bytes for the answer. Masks keep each offset in it low enough: at most
    // 31 (original connection ID) + 63 (until the token) + 96 (token and tag). The helpers check what they read from
    // the packet.
    let (start, length) = unsafe {
        let out = (&raw mut (*scratch).answer).cast::<u8>();
        let cid = (&raw mut (*scratch).cid).cast::<u8>();
        clear::<USED_WORDS>(out.cast());
        clear::<4>(cid.cast());
        load_octet(ctx, payload as u64 + 5, &mut lengths)?;
        let dcid_len = u64::from(lengths[0]);
        if dcid_len < u64::from(FIRST_DCID_LEN_MIN) || dcid_len > u64::from(CID_LEN_MAX) {
            return Err(Failed);
        }
        load_octet(ctx, payload as u64 + 6 + dcid_len, &mut lengths)?;
        let scid_len = u64::from(lengths[0]);
        if scid_len > u64::from(CID_LEN_MAX) {
            return Err(Failed);
        }
        copy_cid(ctx, payload as u64 + 6, cid, dcid_len)?;
        let original = OriginalCid {
            words: [load(cid), load(cid.add(8)), load(cid.add(16))],
            len: dcid_len as u8,
        };
        // RFC 9001 §5.8: the pseudo-packet begins with the original connection ID.
        *out = dcid_len as u8;
        store(out.add(1), original.words[0]);
        store(out.add(9), original.words[1]);
        store(out.add(17), original.words[2] as u32);
        let start = out.add(mask::<0x1f>(1 + dcid_len) as usize);
        let scid = random();
        // RFC 9000 §17.2.5: the low four bits are arbitrary.
        *start = 0xf0 | scid as u8 & 0xf;
        store(start.add(1), VERSION_1.to_be());
        *start.add(5) = scid_len as u8;
        copy_cid(ctx, payload as u64 + 7 + dcid_len, start.add(6), scid_len)?;
        let own = start.add(mask::<0x1f>(6 + scid_len) as usize);
        // The nonce is part of what the MAC covers, and need not be secret. A random number of its own would be two more
        // calls.
        let nonce = [scid, now_ns];
        *own = SCID_LEN as u8;
        store(own.add(1), scid);
        let token = keys.retry(sender, original, now_s, nonce);
        let mut word = 0;
        while word < token.len() {
            store(own.add(9 + 8 * word), token[word]);
            word += 1;
        }
        let length = 6 + scid_len + 1 + SCID_LEN + RETRY_TOKEN_LEN as u64;
        let tag = retry_tag(&*out.cast::<[u64; WORDS]>(), 1 + dcid_len + length);
        store(own.add(9 + RETRY_TOKEN_LEN), tag[0]);
        store(own.add(17 + RETRY_TOKEN_LEN), tag[1]);
        (start, length + TAG_LEN)
    };
    reply(ctx, payload, start, length)
}

#[inline(always)]
unsafe fn load_octet(ctx: &XdpContext, offset: u64, to: &mut [u8; 8]) -> Result<(), Failed> {
    // SAFETY: there is room for the byte; the helper checks the packet's bounds.
    done(unsafe { bpf_xdp_load_bytes(ctx.ctx, offset as u32, to.as_mut_ptr().cast(), 1) })
}

/// Who has sent the packet, by where its payload begins.
#[inline(always)]
fn sender(ctx: &XdpContext, payload: usize) -> Result<Sender, Failed> {
    match payload {
        42 => sender_ipv4::<14>(ctx),
        46 => sender_ipv4::<18>(ctx),
        62 => sender_ipv6::<14>(ctx),
        66 => sender_ipv6::<18>(ctx),
        _ => Err(Failed),
    }
}

#[inline(always)]
fn sender_ipv4<const IP: usize>(ctx: &XdpContext) -> Result<Sender, Failed> {
    let ip = linear(ctx, IP + 28)?;
    // SAFETY: `linear` has compared the end of the UDP header with the end of the packet.
    let (address, port) = unsafe { (load(ip.add(IP + 12)), load(ip.add(IP + 20))) };
    Ok(Sender {
        address: Source::V4(address).mapped(),
        port,
    })
}

#[inline(always)]
fn sender_ipv6<const IP: usize>(ctx: &XdpContext) -> Result<Sender, Failed> {
    let ip = linear(ctx, IP + 48)?;
    // SAFETY: as above.
    let (address, port) = unsafe {
        (
            [load(ip.add(IP + 8)), load(ip.add(IP + 16))],
            load(ip.add(IP + 40)),
        )
    };
    Ok(Sender { address, port })
}

#[inline(always)]
fn random() -> u64 {
    // SAFETY: the helper has no arguments and no preconditions.
    unsafe { u64::from(bpf_get_prandom_u32()) | u64::from(bpf_get_prandom_u32()) << 32 }
}
