//! Packet keys that keep only what they are made from.
//!
//! The keys of rustls hold their cipher's expanded state, 550 bytes for each direction and phase of a connection. An
//! idle connection uses them once a minute, so these here keep key and IV (28 or 44 bytes) and expand for each packet,
//! which takes about 0.1 µs where the CPU has AES instructions.

use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};

use ring::aead;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::crypto::ring::cipher_suite;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::quic::{Algorithm, HeaderProtectionKey, PacketKey, Suite, Tag};
use rustls::{CipherSuite, Error, SupportedCipherSuite, Tls13CipherSuite};

/// Length of the tag that each AEAD of TLS 1.3 appends (RFC 9001 §5.3).
pub(super) const TAG_LEN: usize = 16;

/// ring's provider, with the QUIC keys of every TLS 1.3 suite replaced by compact ones. Suites of older versions are
/// left out: QUIC has none (RFC 9001 §4.2).
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = SUITES.iter().map(SupportedCipherSuite::Tls13).collect();
    Arc::new(provider)
}

/// The suite that protects Initial packets, whatever is negotiated later (RFC 9001 §5.2).
pub(super) fn initial_suite() -> Suite {
    let suite = &SUITES[AES_128_GCM_INDEX];
    debug_assert_eq!(suite.common.suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    Suite {
        suite,
        quic: &Compact::<Aes128Gcm>(PhantomData),
    }
}

const AES_128_GCM_INDEX: usize = 0;

/// In the server's order of preference.
static SUITES: LazyLock<[Tls13CipherSuite; 3]> = LazyLock::new(|| {
    [
        compact(
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            &Compact::<Aes128Gcm>(PhantomData),
        ),
        compact(
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            &Compact::<Aes256Gcm>(PhantomData),
        ),
        compact(
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            &Compact::<ChaCha20Poly1305>(PhantomData),
        ),
    ]
});

fn compact(suite: SupportedCipherSuite, quic: &'static dyn Algorithm) -> Tls13CipherSuite {
    let original = suite.tls13().expect("bug: named as a TLS 1.3 suite");
    Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: original.common.suite,
            hash_provider: original.common.hash_provider,
            confidentiality_limit: original.common.confidentiality_limit,
        },
        hkdf_provider: original.hkdf_provider,
        aead_alg: original.aead_alg,
        quic: Some(quic),
    }
}

/// What differs between the AEADs.
trait Cipher: Send + Sync + 'static {
    /// An array of the key's length.
    type Key: AsRef<[u8]> + for<'a> TryFrom<&'a [u8]> + Send + Sync;
    const KEY_LEN: usize;
    /// Packets that may be encrypted with one key (RFC 9001 §6.6, B.1.1).
    const CONFIDENTIALITY_LIMIT: u64;
    /// Forged packets after which the connection must end (RFC 9001 §6.6, B.1.2).
    const INTEGRITY_LIMIT: u64;
    fn aead() -> &'static aead::Algorithm;
    fn header_protection() -> &'static aead::quic::Algorithm;
}

struct Aes128Gcm;
struct Aes256Gcm;
struct ChaCha20Poly1305;

impl Cipher for Aes128Gcm {
    type Key = [u8; 16];
    const KEY_LEN: usize = 16;
    const CONFIDENTIALITY_LIMIT: u64 = 1 << 23;
    const INTEGRITY_LIMIT: u64 = 1 << 52;
    fn aead() -> &'static aead::Algorithm {
        &aead::AES_128_GCM
    }
    fn header_protection() -> &'static aead::quic::Algorithm {
        &aead::quic::AES_128
    }
}

impl Cipher for Aes256Gcm {
    type Key = [u8; 32];
    const KEY_LEN: usize = 32;
    const CONFIDENTIALITY_LIMIT: u64 = 1 << 23;
    const INTEGRITY_LIMIT: u64 = 1 << 52;
    fn aead() -> &'static aead::Algorithm {
        &aead::AES_256_GCM
    }
    fn header_protection() -> &'static aead::quic::Algorithm {
        &aead::quic::AES_256
    }
}

impl Cipher for ChaCha20Poly1305 {
    type Key = [u8; 32];
    const KEY_LEN: usize = 32;
    // More than a connection has packet numbers: no limit (RFC 9001 §6.6).
    const CONFIDENTIALITY_LIMIT: u64 = u64::MAX;
    const INTEGRITY_LIMIT: u64 = 1 << 36;
    fn aead() -> &'static aead::Algorithm {
        &aead::CHACHA20_POLY1305
    }
    fn header_protection() -> &'static aead::quic::Algorithm {
        &aead::quic::CHACHA20
    }
}

/// Makes compact keys for `C`.
struct Compact<C>(PhantomData<C>);

impl<C: Cipher> Algorithm for Compact<C> {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn PacketKey> {
        let iv = iv.as_ref().try_into().expect("bug: a QUIC IV has 12 bytes");
        Box::new(CompactPacketKey::<C> {
            key: key_array::<C>(&key),
            iv,
        })
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn HeaderProtectionKey> {
        Box::new(CompactHeaderKey::<C> {
            key: key_array::<C>(&key),
        })
    }

    fn aead_key_len(&self) -> usize {
        C::KEY_LEN
    }
}

fn key_array<C: Cipher>(key: &AeadKey) -> C::Key {
    // rustls derives as many bytes as `aead_key_len` says.
    C::Key::try_from(key.as_ref())
        .ok()
        .expect("bug: the key's length is the cipher's")
}

struct CompactPacketKey<C: Cipher> {
    key: C::Key,
    iv: [u8; aead::NONCE_LEN],
}

impl<C: Cipher> CompactPacketKey<C> {
    fn expand(&self) -> aead::LessSafeKey {
        let key = aead::UnboundKey::new(C::aead(), self.key.as_ref())
            .expect("bug: the key's length is the cipher's");
        aead::LessSafeKey::new(key)
    }

    /// RFC 9001 §5.3: the IV, with the packet number xored into its end.
    fn nonce(&self, packet_number: u64) -> aead::Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[aead::NONCE_LEN - 8..]
            .iter_mut()
            .zip(packet_number.to_be_bytes())
        {
            *byte ^= number;
        }
        aead::Nonce::assume_unique_for_key(nonce)
    }
}

impl<C: Cipher> PacketKey for CompactPacketKey<C> {
    fn encrypt_in_place(
        &self,
        packet_number: u64,
        header: &[u8],
        payload: &mut [u8],
    ) -> Result<Tag, Error> {
        let nonce = self.nonce(packet_number);
        let tag = self
            .expand()
            .seal_in_place_separate_tag(nonce, aead::Aad::from(header), payload);
        tag.map(|tag| Tag::from(tag.as_ref()))
            .map_err(|_| Error::EncryptError)
    }

    fn decrypt_in_place<'a>(
        &self,
        packet_number: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        let nonce = self.nonce(packet_number);
        let plain = self
            .expand()
            .open_in_place(nonce, aead::Aad::from(header), payload);
        plain.map(|plain| &*plain).map_err(|_| Error::DecryptError)
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    fn confidentiality_limit(&self) -> u64 {
        C::CONFIDENTIALITY_LIMIT
    }

    fn integrity_limit(&self) -> u64 {
        C::INTEGRITY_LIMIT
    }
}

struct CompactHeaderKey<C: Cipher> {
    key: C::Key,
}

impl<C: Cipher> CompactHeaderKey<C> {
    /// RFC 9001 §5.4.1. `protected` says that the packet number's length has yet to be uncovered.
    fn apply(
        &self,
        sample: &[u8],
        first: &mut u8,
        number: &mut [u8],
        protected: bool,
    ) -> Result<(), Error> {
        let key = aead::quic::HeaderProtectionKey::new(C::header_protection(), self.key.as_ref())
            .expect("bug: the key's length is the cipher's");
        let wrong = |what: &str| Error::General(format!("header protection: {what}"));
        let [first_mask, number_mask @ ..] = key
            .new_mask(sample)
            .map_err(|_| wrong("the sample must have 16 bytes"))?;
        if number.len() > number_mask.len() {
            return Err(wrong("a packet number has 4 bytes at most"));
        }
        let long_header = *first & 0x80 != 0;
        let first_mask = first_mask & if long_header { 0x0f } else { 0x1f };
        let plain = if protected {
            *first ^ first_mask
        } else {
            *first
        };
        let number_len = usize::from(plain & 0x03) + 1;
        *first ^= first_mask;
        for (byte, mask) in number.iter_mut().zip(number_mask).take(number_len) {
            *byte ^= mask;
        }
        Ok(())
    }
}

impl<C: Cipher> HeaderProtectionKey for CompactHeaderKey<C> {
    fn encrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, packet_number, false)
    }

    fn decrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, packet_number, true)
    }

    fn sample_len(&self) -> usize {
        C::header_protection().sample_len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rustls::Side;
    use rustls::quic::{Keys, Version};

    use super::*;

    /// The keys of a suite by rustls and the compact ones, from the same secret.
    fn both(index: usize, secret: &[u8]) -> (Keys, Keys) {
        let originals = [
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let original = originals[index].tls13().unwrap().quic_suite().unwrap();
        let compact = SUITES[index].quic_suite().unwrap();
        assert_eq!(original.suite.common.suite, compact.suite.common.suite);
        (
            original.keys(secret, Side::Client, Version::V1),
            compact.keys(secret, Side::Server, Version::V1),
        )
    }

    proptest! {
        /// What one side encrypts the other decrypts, in both directions, for every suite; and the header protection
        /// is the same.
        #[test]
        fn agree_with_the_keys_of_rustls(
            index in 0..3usize,
            secret in prop::collection::vec(any::<u8>(), 8..20),
            packet_number in 0..1u64 << 62,
            header in prop::collection::vec(any::<u8>(), 0..40),
            payload in prop::collection::vec(any::<u8>(), 0..1500),
            sample in any::<[u8; 16]>(),
            first in any::<u8>(),
            number in prop::collection::vec(any::<u8>(), 0..=4),
        ) {
            let (theirs, ours) = both(index, &secret);
            for (from, to) in [(&theirs.local, &ours.remote), (&ours.local, &theirs.remote)] {
                let mut packet = payload.clone();
                let tag = from.packet.encrypt_in_place(packet_number, &header, &mut packet).unwrap();
                packet.extend_from_slice(tag.as_ref());
                let plain = to.packet.decrypt_in_place(packet_number, &header, &mut packet).unwrap();
                prop_assert_eq!(plain, &payload[..]);

                let (mut protected, mut protected_number) = (first, number.clone());
                from.header.encrypt_in_place(&sample, &mut protected, &mut protected_number).unwrap();
                let (mut other, mut other_number) = (first, number.clone());
                to.header.encrypt_in_place(&sample, &mut other, &mut other_number).unwrap();
                prop_assert_eq!((protected, &protected_number), (other, &other_number));
                to.header.decrypt_in_place(&sample, &mut protected, &mut protected_number).unwrap();
                prop_assert_eq!((protected, protected_number), (first, number.clone()));
            }
        }

        #[test]
        fn refuse_what_was_altered(
            index in 0..3usize,
            payload in prop::collection::vec(any::<u8>(), 1..100),
            place in any::<prop::sample::Index>(),
            bit in 0..8u32,
        ) {
            let (theirs, ours) = both(index, b"some connection id");
            let mut packet = payload;
            let tag = theirs.local.packet.encrypt_in_place(7, b"header", &mut packet).unwrap();
            packet.extend_from_slice(tag.as_ref());
            for (number, header) in [(8, &b"header"[..]), (7, b"Header")] {
                prop_assert!(ours.remote.packet.decrypt_in_place(number, header, &mut packet.clone()).is_err());
            }
            let place = place.index(packet.len());
            packet[place] ^= 1 << bit;
            prop_assert!(ours.remote.packet.decrypt_in_place(7, b"header", &mut packet).is_err());
        }
    }

    #[test]
    fn limits_and_lengths_are_those_of_rustls() {
        for index in 0..3 {
            let (theirs, ours) = both(index, b"secret");
            assert_eq!(theirs.local.packet.tag_len(), ours.local.packet.tag_len());
            assert_eq!(
                theirs.local.packet.confidentiality_limit(),
                ours.local.packet.confidentiality_limit()
            );
            assert_eq!(
                theirs.local.packet.integrity_limit(),
                ours.local.packet.integrity_limit()
            );
            assert_eq!(
                theirs.local.header.sample_len(),
                ours.local.header.sample_len()
            );
        }
    }

    #[test]
    fn impossible_packets_are_errors() {
        let (_, ours) = both(0, b"secret");
        for len in [0, 1, 15] {
            assert!(
                ours.remote
                    .packet
                    .decrypt_in_place(1, b"", &mut vec![0; len])
                    .is_err(),
                "shorter than a tag"
            );
        }
        let mut first = 0;
        assert!(
            ours.local
                .header
                .encrypt_in_place(&[0; 15], &mut first, &mut [0; 2])
                .is_err()
        );
        assert!(
            ours.local
                .header
                .encrypt_in_place(&[0; 16], &mut first, &mut [0; 5])
                .is_err()
        );
        assert_eq!(first, 0);
    }

    #[test]
    fn all_and_only_the_tls_1_3_suites_of_ring_are_offered() {
        let names = |provider: &CryptoProvider| -> BTreeSet<u16> {
            let suites = provider
                .cipher_suites
                .iter()
                .filter_map(SupportedCipherSuite::tls13);
            suites.map(|suite| suite.common.suite.into()).collect()
        };
        let provider = provider();
        assert_eq!(
            names(&provider),
            names(&rustls::crypto::ring::default_provider())
        );
        assert_eq!(provider.cipher_suites.len(), 3);
        assert_eq!(
            initial_suite().suite.common.suite,
            CipherSuite::TLS13_AES_128_GCM_SHA256
        );
    }
}
