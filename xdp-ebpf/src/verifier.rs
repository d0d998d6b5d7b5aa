//! Instructions that the compiler would leave out although the verifier must see them, or that it has no words for.

use core::arch::asm;

/// `value & MASK`, also where the compiler knows that it changes nothing: the verifier doesn't know.
#[inline(always)]
pub fn mask<const MASK: u64>(mut value: u64) -> u64 {
    // SAFETY: one instruction on one register.
    unsafe {
        asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK, options(pure, nomem, nostack))
    };
    value
}

/// `index` if it is below `COUNT`, also where the compiler knows that it always is.
#[inline(always)]
pub fn below<const COUNT: u64>(mut index: u64) -> Option<usize> {
    // An addition of nothing, after which the compiler no longer knows the register. (No instruction at all would
    // leave two of its line numbers at one place, which the kernel refuses.)
    // SAFETY: one instruction on one register.
    unsafe { asm!("{index} += 0", index = inout(reg) index, options(pure, nomem, nostack)) };
    if index < COUNT {
        Some(index as usize)
    } else {
        None
    }
}

/// A length of 1 to `MASK + 1` bytes for a helper. A mask alone would let the verifier think that it may be 0.
#[inline(always)]
pub fn one_to<const MASK: u64>(mut value: u64) -> u32 {
    // SAFETY: three instructions on one register.
    unsafe {
        asm!("{value} += -1", "{value} &= {mask}", "{value} += 1",
            value = inout(reg) value, mask = const MASK, options(pure, nomem, nostack));
    }
    value as u32
}

/// Reads at once what `read_unaligned` would read in single bytes; this target's loads may be unaligned.
///
/// # Safety
/// `from` must point to a `T`; the verifier checks it.
#[inline(always)]
pub unsafe fn load<T: Copy>(from: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { *from.cast::<T>() }
}

/// Writes at once what `write_unaligned` would write in single bytes.
///
/// # Safety
/// `to` must have room for a `T`; the verifier checks it.
#[inline(always)]
pub unsafe fn store<T: Copy>(to: *mut u8, value: T) {
    // SAFETY: the caller's promise.
    unsafe { *to.cast::<T>() = value };
}

/// Adds to a number that all CPUs share.
///
/// # Safety
/// `number` must point to an aligned number; the verifier checks it.
#[inline(always)]
pub unsafe fn atomic_add(number: *mut u64, amount: u64) {
    // SAFETY: one instruction, and the caller's promise. Rust has no atomic additions on this target.
    unsafe {
        asm!("lock *(u64 *)({number} + 0) += {amount}",
            number = in(reg) number, amount = in(reg) amount, options(nostack));
    }
}
