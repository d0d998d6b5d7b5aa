//! The Retry Integrity Tag of QUIC version 1 (RFC 9001 §5.8) without AES at run time.
//!
//! The tag is AES-128-GCM over no plaintext, with a key and a nonce that the standard fixes. What AES contributes is
//! therefore constant: the multiplier H and the block that the hash is combined with. What is left is GHASH
//! (NIST SP 800-38D §6.4): a multiplication by H for each 16 bytes, which a table of multiples turns into look-ups.

/// Words of the buffer that [`retry_tag`] reads: 9 blocks of 16 bytes.
pub const WORDS: usize = 18;

/// AES-128 of the zero block with the key of RFC 9001 §5.8.
const H: u128 = 0x7295_6a45_4ffa_ff54_85a1_3a12_44d0_1d47;
/// AES-128 of the nonce of RFC 9001 §5.8 and the counter 1, with the same key.
const PAD: u128 = 0x555e_4b74_9355_6eea_af75_d35b_d7fb_a5d8;
/// GHASH's polynomial, bits reflected.
const POLYNOMIAL: u128 = 0xe1 << 120;

/// A block as two words in the order in which memory has them, little-endian.
type Block = [u64; 2];

/// For each byte of a block and each of its values, that block times H: 64 KiB. Half bytes need an eighth of that and twice the
/// look-ups, with which a Retry packet took about a sixth longer.
static MULTIPLES: [Block; 4096] = multiples();

const fn block(value: u128) -> Block {
    let value = value.swap_bytes();
    [value as u64, (value >> 64) as u64]
}

/// Multiplication in GCM's field (NIST SP 800-38D §6.3).
const fn multiply(x: u128, y: u128) -> u128 {
    let (mut product, mut shifted, mut bit) = (0, y, 0);
    while bit < 128 {
        if x >> (127 - bit) & 1 == 1 {
            product ^= shifted;
        }
        let carry = shifted & 1;
        shifted >>= 1;
        if carry == 1 {
            shifted ^= POLYNOMIAL;
        }
        bit += 1;
    }
    product
}

const fn multiples() -> [Block; 4096] {
    let mut table = [[0; 2]; 4096];
    let mut byte = 0;
    while byte < 16 {
        let row = byte * 256;
        let lowest = 8 * (15 - byte);
        let mut value = 1;
        while value < 256usize {
            // All bits but the highest have an entry already.
            let highest = value.ilog2();
            let rest = value ^ 1 << highest;
            let multiple = if rest == 0 {
                block(multiply(1 << (lowest + highest as usize), H))
            } else {
                table[row + (1 << highest)]
            };
            table[row + value][0] = multiple[0] ^ table[row + rest][0];
            table[row + value][1] = multiple[1] ^ table[row + rest][1];
            value += 1;
        }
        byte += 1;
    }
    table
}

/// A block times H.
#[inline(always)]
fn times_h([low, high]: Block) -> Block {
    let mut product = [0; 2];
    let mut byte = 0;
    while byte < 8 {
        let first = &MULTIPLES[byte * 256 + (low >> (8 * byte)) as usize % 256];
        let second = &MULTIPLES[2048 + byte * 256 + (high >> (8 * byte)) as usize % 256];
        product[0] ^= first[0] ^ second[0];
        product[1] ^= first[1] ^ second[1];
        byte += 1;
    }
    product
}

/// The tag of a Retry pseudo-packet (RFC 9001 §5.8) of `len` bytes, which is in `words` and followed by zeros. Both
/// are in the order of memory. Longer ones than `words` holds are cut.
#[inline(always)]
#[must_use]
pub fn retry_tag(words: &[u64; WORDS], len: u64) -> Block {
    let mut hash = [0; 2];
    let mut index = 0;
    while index < WORDS / 2 {
        if index as u64 * 16 >= len {
            break;
        }
        hash[0] ^= words[2 * index];
        hash[1] ^= words[2 * index + 1];
        hash = times_h(hash);
        index += 1;
    }
    // All of it is associated data, and none is ciphertext: two lengths in bits, big-endian.
    hash[0] ^= (len * 8).swap_bytes();
    hash = times_h(hash);
    let pad = const { block(PAD) };
    [hash[0] ^ pad[0], hash[1] ^ pad[1]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn words(bytes: &[u8]) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(padded);
        }
        words
    }

    fn tag(pseudo_packet: &[u8]) -> [u8; 16] {
        let [a, b] = retry_tag(&words(pseudo_packet), pseudo_packet.len() as u64);
        let mut tag = [0; 16];
        tag[..8].copy_from_slice(&a.to_le_bytes());
        tag[8..].copy_from_slice(&b.to_le_bytes());
        tag
    }

    /// RFC 9001 §A.4.
    #[test]
    fn the_standards_example_comes_out() {
        let mut packet: Vec<u8> = Vec::from([8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08]);
        packet.extend([
            0xff, 0, 0, 0, 1, 0, 8, 0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5,
        ]);
        packet.extend(b"token");
        let expected = [
            0x04, 0xa2, 0x65, 0xba, 0x2e, 0xff, 0x4d, 0x82, 0x90, 0x58, 0xfb, 0x3f, 0x0f, 0x24,
            0x96, 0xba,
        ];
        assert_eq!(tag(&packet), expected);
    }

    /// The reference is an AES-GCM that we did not write.
    fn reference(pseudo_packet: &[u8]) -> [u8; 16] {
        use ring::aead;
        let key = [
            0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a, 0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68,
            0xc8, 0x4e,
        ];
        let nonce = [
            0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb,
        ];
        let key = aead::UnboundKey::new(&aead::AES_128_GCM, &key).expect("a key of 16 bytes");
        let tag = aead::LessSafeKey::new(key)
            .seal_in_place_separate_tag(
                aead::Nonce::assume_unique_for_key(nonce),
                aead::Aad::from(pseudo_packet),
                &mut [],
            )
            .expect("nothing is sealed");
        tag.as_ref().try_into().expect("16 bytes")
    }

    proptest! {
        #[test]
        fn agrees_with_an_independent_implementation(packet in prop::collection::vec(any::<u8>(), 0..=8 * WORDS)) {
            prop_assert_eq!(tag(&packet), reference(&packet));
        }
    }
}
