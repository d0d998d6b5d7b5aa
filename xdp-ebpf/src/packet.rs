//! Packets as XDP programs read them.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use headgate_common::Head;
use headgate_common::frame::{Chunk, Packet};

/// The packet of an XDP program's run.
pub struct XdpPacket {
    ctx: *mut xdp_md,
    data: usize,
    end: usize,
}

impl XdpPacket {
    /// The packet as it is now: not to be used any more once the packet has been changed.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self {
            ctx: ctx.ctx,
            data: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// The head at a constant offset: such a read is one that the verifier can follow.
    #[inline(always)]
    fn head_at<const OFFSET: usize>(&self) -> Option<Head> {
        if let Some(chunk) = self.chunk(OFFSET, 32) {
            return Some(Head([
                chunk.long(0),
                chunk.long(8),
                chunk.long(16),
                chunk.long(24),
            ]));
        }
        let mut words = [0u64; 4];
        // SAFETY: `words` has the 32 bytes that the helper writes.
        let loaded =
            unsafe { bpf_xdp_load_bytes(self.ctx, OFFSET as u32, words.as_mut_ptr().cast(), 32) };
        if loaded == 0 { Some(Head(words)) } else { None }
    }
}

impl Packet for XdpPacket {
    type Chunk = XdpChunk;

    #[inline(always)]
    fn chunk(&self, offset: usize, len: usize) -> Option<XdpChunk> {
        let start = self.data + offset;
        if start + len > self.end {
            None
        } else {
            Some(XdpChunk(start))
        }
    }

    #[inline(always)]
    fn head(&self, offset: usize) -> Option<Head> {
        match offset {
            42 => self.head_at::<42>(),
            46 => self.head_at::<46>(),
            62 => self.head_at::<62>(),
            66 => self.head_at::<66>(),
            _ => None,
        }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let mut words = [const { MaybeUninit::<u64>::uninit() }; N];
        // SAFETY: `words` has the bytes that the helper writes.
        let loaded = unsafe {
            bpf_xdp_load_bytes(self.ctx, offset, words.as_mut_ptr().cast(), 8 * N as u32)
        };
        if loaded != 0 {
            return None;
        }
        // SAFETY: the helper has written all of them.
        Some(words.map(|word| unsafe { word.assume_init() }))
    }

    #[inline(always)]
    fn reaches(&self, end: u32) -> bool {
        if self.data + end as usize <= self.end {
            return true;
        }
        // The rest may lie in page fragments. The helper is not for every packet: a call costs as much as a check.
        // SAFETY: the context is the kernel's own.
        end as u64 <= unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }
}

/// Bytes of the packet that were compared with its end.
pub struct XdpChunk(usize);

impl XdpChunk {
    /// Not `read_unaligned`: that becomes single bytes on this target, whose loads may be unaligned.
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: the verifier refuses the program if this lies outside what was compared with the packet's end.
        unsafe { *((self.0 + offset) as *const T) }
    }
}

impl Chunk for XdpChunk {
    #[inline(always)]
    fn octet(&self, offset: usize) -> u8 {
        self.load(offset)
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> u16 {
        self.load(offset)
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> u32 {
        self.load(offset)
    }

    #[inline(always)]
    fn long(&self, offset: usize) -> u64 {
        self.load(offset)
    }
}
