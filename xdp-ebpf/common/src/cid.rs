//! Connection IDs that carry their worker's slot and a MAC.
//!
//! ```text
//! octet   0                    1–2       3             4–9      10–13
//!         rotation 3 | 13      node id   worker slot   random   MAC
//! ```
//!
//! The first octet is that of a plaintext QUIC-LB connection ID (draft-ietf-quic-load-balancers §3): three bits of
//! configuration rotation, of which 7 is reserved, and the length less one. The node id (big-endian) is the server
//! id; slot, random and MAC together are QUIC-LB's nonce. The MAC is SipHash-1-3 over octets 0–9 with the key of the
//! rotation, truncated to its low 32 bits (little-endian): it keeps a flood of invented connection IDs out, and is no
//! substitute for QUIC's own packet protection.

use crate::siphash::SipKey;

/// Length of a connection ID of ours, in bytes.
pub const CID_LEN: usize = 14;
/// Length of the random part, in bytes.
pub const RANDOM_LEN: usize = 6;
/// Rotations that can be in use: 3 bits, without the reserved value 7 (QUIC-LB §3.1).
pub const ROTATIONS: u8 = 7;

/// The five bits that QUIC-LB calls the length self-description.
const LENGTH_BITS: u8 = CID_LEN as u8 - 1;

/// What a connection ID says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CidFields {
    /// Which key made it: 0–6.
    pub rotation: u8,
    /// The node that owns the connection.
    pub node: u16,
    /// The worker slot that owns the connection.
    pub slot: u8,
    /// Makes it unique and unlinkable to the connection's others.
    pub random: [u8; RANDOM_LEN],
}

/// Why a connection ID is not one of ours. The peer's doing, or an old key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CidError {
    /// Not 14 bytes, or the first octet says another length.
    Length,
    /// Its rotation has no live key.
    Rotation,
    /// The MAC does not match: invented, or made with a key that is gone.
    Mac,
}

impl core::fmt::Display for CidError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Length => "connection ID is not of our length",
            Self::Rotation => "connection ID's rotation has no live key",
            Self::Mac => "connection ID's MAC does not match",
        })
    }
}

impl core::error::Error for CidError {}

/// The key of one rotation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CidKey {
    /// The MAC's key.
    pub key: SipKey,
    /// 1 while connection IDs of this rotation are accepted, else 0.
    pub live: u64,
}

/// The keys by rotation. At most two are live at a time: the one that new connection IDs are made with, and the one
/// before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CidKeys {
    /// Indexed by rotation; the last, reserved one stays dead.
    rotations: [CidKey; 8],
    /// The rotation that new connection IDs are made with.
    current: u64,
}

impl CidKeys {
    /// One live rotation. `rotation` is taken modulo [`ROTATIONS`].
    #[must_use]
    pub const fn new(rotation: u8, key: SipKey) -> Self {
        let dead = CidKey {
            key: SipKey { k0: 0, k1: 0 },
            live: 0,
        };
        let mut keys = Self {
            rotations: [dead; 8],
            current: (rotation % ROTATIONS) as u64,
        };
        keys.rotations[keys.current as usize] = CidKey { key, live: 1 };
        keys
    }

    /// Accepts connection IDs of one more rotation, the former one. `rotation` is taken modulo [`ROTATIONS`]; the
    /// current one is left alone.
    #[must_use]
    pub const fn with_former(mut self, rotation: u8, key: SipKey) -> Self {
        let rotation = (rotation % ROTATIONS) as usize;
        if rotation != self.current as usize {
            self.rotations[rotation] = CidKey { key, live: 1 };
        }
        self
    }

    /// The rotation that new connection IDs are made with.
    #[must_use]
    pub const fn current(&self) -> u8 {
        self.current as u8
    }

    /// Makes a connection ID with the current rotation's key.
    #[must_use]
    pub fn encode(&self, node: u16, slot: u8, random: [u8; RANDOM_LEN]) -> [u8; CID_LEN] {
        let mut cid = [0; CID_LEN];
        cid[0] = self.current() << 5 | LENGTH_BITS;
        cid[1..3].copy_from_slice(&node.to_be_bytes());
        cid[3] = slot;
        cid[4..10].copy_from_slice(&random);
        let raw = RawCid::from_bytes(&cid);
        let mac = mac(
            &self.rotations[usize::from(self.current()) & 7].key,
            raw.first,
            raw.second,
        );
        cid[10..].copy_from_slice(&mac.to_le_bytes());
        cid
    }

    /// Checks a connection ID and says what it carries.
    ///
    /// # Errors
    /// When it was not made with one of the live keys.
    pub fn decode(&self, cid: &[u8]) -> Result<CidFields, CidError> {
        let cid: &[u8; CID_LEN] = cid.try_into().map_err(|_| CidError::Length)?;
        let raw = RawCid::from_bytes(cid);
        self.verify(raw)?;
        let [_, _, _, _, random @ .., _, _, _, _] = *cid;
        Ok(CidFields {
            rotation: raw.first_octet() >> 5,
            node: raw.node(),
            slot: raw.slot(),
            random,
        })
    }

    /// Checks the MAC.
    ///
    /// # Errors
    /// When it was not made with one of the live keys.
    #[inline(always)]
    pub const fn verify(&self, cid: RawCid) -> Result<(), CidError> {
        let octet = cid.first_octet();
        if octet & 0x1f != LENGTH_BITS {
            return Err(CidError::Length);
        }
        let key = &self.rotations[(octet >> 5) as usize & 7];
        if key.live == 0 {
            return Err(CidError::Rotation);
        }
        if mac(&key.key, cid.first, cid.second) != cid.mac {
            return Err(CidError::Mac);
        }
        Ok(())
    }
}

/// A connection ID of our length in registers, as a kernel program holds it. Not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawCid {
    /// Octets 0–7, little-endian.
    pub first: u64,
    /// Octets 8–9, little-endian.
    pub second: u16,
    /// Octets 10–13, little-endian.
    pub mac: u32,
}

impl RawCid {
    /// The same bytes in registers.
    #[must_use]
    pub const fn from_bytes(cid: &[u8; CID_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, mac @ ..] = *cid;
        Self {
            first: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            second: u16::from_le_bytes([i, j]),
            mac: u32::from_le_bytes(mac),
        }
    }

    /// Rotation and length.
    #[inline(always)]
    #[must_use]
    pub const fn first_octet(self) -> u8 {
        self.first as u8
    }

    /// The node that owns the connection, if the MAC is right.
    #[inline(always)]
    #[must_use]
    pub const fn node(self) -> u16 {
        ((self.first >> 8) as u16).swap_bytes()
    }

    /// The worker slot that owns the connection, if the MAC is right.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u8 {
        (self.first >> 24) as u8
    }
}

#[inline(always)]
const fn mac(key: &SipKey, first: u64, second: u16) -> u32 {
    key.hash([first], 10 << 56 | second as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(rotation: u8) -> CidKeys {
        CidKeys::new(rotation, SipKey { k0: 11, k1: 12 })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(rotation in 0..ROTATIONS, node: u16, slot: u8, random: [u8; 6]) {
            let cid = keys(rotation).encode(node, slot, random);
            prop_assert_eq!(keys(rotation).decode(&cid), Ok(CidFields { rotation, node, slot, random }));
            prop_assert_eq!(cid[0], rotation << 5 | 13, "the first octet is QUIC-LB's");
        }

        #[test]
        fn any_changed_bit_is_noticed(node: u16, slot: u8, random: [u8; 6], bit in 0..112usize) {
            let mut cid = keys(3).encode(node, slot, random);
            cid[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(keys(3).decode(&cid).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            // The chance that random bytes carry a right MAC is 2^-32 a case.
            prop_assert!(keys(0).decode(&bytes).is_err());
        }
    }

    #[test]
    fn two_rotations_are_live_and_a_third_is_not() {
        let [old, now, other] = [1, 2, 3].map(|n| SipKey { k0: n, k1: n });
        let both = CidKeys::new(6, now).with_former(5, old);
        assert_eq!(both.current(), 6);
        assert!(
            both.decode(&CidKeys::new(5, old).encode(1, 2, [3; 6]))
                .is_ok()
        );
        assert!(both.decode(&both.encode(1, 2, [3; 6])).is_ok());
        assert_eq!(
            both.decode(&CidKeys::new(4, other).encode(1, 2, [3; 6])),
            Err(CidError::Rotation)
        );
        assert_eq!(
            both.decode(&CidKeys::new(5, other).encode(1, 2, [3; 6])),
            Err(CidError::Mac)
        );
    }

    #[test]
    fn the_reserved_rotation_is_never_made_nor_accepted() {
        assert_eq!(keys(7).current(), 0);
        let mut cid = keys(0).encode(0, 0, [0; 6]);
        cid[0] |= 7 << 5;
        assert_eq!(keys(0).decode(&cid), Err(CidError::Rotation));
    }
}
