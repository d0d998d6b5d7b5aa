//! The compact keys against rustls's own.

use proptest::prelude::*;
use rustls::crypto::ring::cipher_suite;
use rustls::quic::{self, Version};

use super::*;

const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// rustls's keys for the same suite that a client of rustls would use.
fn theirs(dst_cid: &ConnectionId) -> quic::Keys {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .unwrap()
        .quic_suite()
        .unwrap();
    suite.keys(dst_cid, rustls::Side::Client, Version::V1)
}

fn sealed(key: &dyn PacketKey, number: u64, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = [header, payload, &[0; TAG_LEN]].concat();
    key.encrypt(number, &mut packet, header.len());
    packet
}

fn opened(key: &dyn PacketKey, number: u64, header: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
    let mut payload = BytesMut::from(payload);
    key.decrypt(number, header, &mut payload)
        .ok()
        .map(|()| payload.to_vec())
}

proptest! {
    /// Initial keys are those of rustls, in both directions, however often and in whatever order they are asked
    /// for; and so is header protection, for short and long headers and all lengths of the packet number.
    #[test]
    fn initial_keys_agree_with_rustls(
        cids in prop::collection::vec(prop::collection::vec(any::<u8>(), 8..=20), 1..4),
        asked in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        number in 0..1u64 << 62,
        header in prop::collection::vec(any::<u8>(), 5..40),
        payload in prop::collection::vec(any::<u8>(), 20..1400),
    ) {
        for index in asked {
            let cid = ConnectionId::new(&cids[index.index(cids.len())]);
            let (ours, theirs) = (initial_keys(&cid), theirs(&cid));
            for (from, to) in [
                (&ours.packet.local, &theirs.remote.packet),
                (&ours.packet.remote, &theirs.local.packet),
            ] {
                let to: &dyn PacketKey = &BorrowedKey(to);
                let packet = sealed(&**from, number, &header, &payload);
                prop_assert_eq!(opened(to, number, &header, &packet[header.len()..]), Some(payload.clone()));
                let packet = sealed(to, number, &header, &payload);
                prop_assert_eq!(opened(&**from, number, &header, &packet[header.len()..]), Some(payload.clone()));
            }
            let pn_offset = header.len() - 4;
            let packet = [&header[..], &payload].concat();
            for (ours, theirs) in [
                (&ours.header.local, &theirs.remote.header),
                (&ours.header.remote, &theirs.local.header),
            ] {
                let (mut by_us, mut by_them) = (packet.clone(), packet.clone());
                ours.encrypt(pn_offset, &mut by_us);
                HeaderKey::encrypt(theirs, pn_offset, &mut by_them);
                prop_assert_eq!(&by_us, &by_them);
                ours.decrypt(pn_offset, &mut by_us);
                prop_assert_eq!(&by_us, &packet);
                HeaderKey::decrypt(theirs, pn_offset, &mut by_them);
                prop_assert_eq!(&by_them, &packet);
            }
        }
    }

    #[test]
    fn what_was_altered_is_refused(
        suite in 0..SUITES.len(),
        payload in prop::collection::vec(any::<u8>(), 1..100),
        place in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let secret = &[7; 48][..if suite == 1 { 48 } else { 32 }];
        let (keys, next) = one_rtt_keys(SUITES[suite], secret, secret).unwrap();
        let next = next.packet_keys();
        for key in [&keys.packet.local, &next.remote] {
            let packet = sealed(&**key, 7, b"header", &payload);
            let mut payload = packet[6..].to_vec();
            prop_assert!(opened(&**key, 7, b"header", &payload).is_some());
            prop_assert!(opened(&**key, 8, b"header", &payload).is_none());
            prop_assert!(opened(&**key, 7, b"Header", &payload).is_none());
            let place = place.index(payload.len());
            payload[place] ^= 1 << bit;
            prop_assert!(opened(&**key, 7, b"header", &payload).is_none());
        }
    }
}

/// quinn-proto's traits for a key of rustls that is only lent.
#[expect(
    clippy::borrowed_box,
    reason = "the traits are implemented for the box"
)]
struct BorrowedKey<'a>(&'a Box<dyn quic::PacketKey>);

impl PacketKey for BorrowedKey<'_> {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        PacketKey::encrypt(self.0, packet, buf, header_len);
    }
    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        PacketKey::decrypt(self.0, packet, header, payload)
    }
    fn tag_len(&self) -> usize {
        PacketKey::tag_len(self.0)
    }
    fn confidentiality_limit(&self) -> u64 {
        PacketKey::confidentiality_limit(self.0)
    }
    fn integrity_limit(&self) -> u64 {
        PacketKey::integrity_limit(self.0)
    }
}

#[test]
fn the_next_keys_are_not_derived_before_they_are_used() {
    let secrets = [[1; 32], [2; 32]];
    let phase = Arc::new(Phase::<Aes128Gcm> {
        former: secrets,
        keys: OnceLock::new(),
    });
    let keys = phase.clone().packet_keys();
    assert_eq!(
        (keys.local.tag_len(), keys.remote.integrity_limit()),
        (16, 1 << 52)
    );
    let _after = phase.successor();
    assert!(phase.keys.get().is_none());
    sealed(&*keys.local, 1, b"header", b"payload");
    assert!(phase.keys.get().is_some());
}

#[test]
fn limits_are_those_of_rustls() {
    for (suite, original) in SUITES.into_iter().zip([
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ]) {
        let theirs = original.tls13().unwrap().quic_suite().unwrap();
        let theirs = theirs
            .keys(b"some id", rustls::Side::Client, Version::V1)
            .local;
        let secret = &[7; 48][..if suite == SUITES[1] { 48 } else { 32 }];
        let (keys, next) = one_rtt_keys(suite, secret, secret).unwrap();
        for ours in [keys.packet.local, next.packet_keys().remote] {
            assert_eq!(ours.tag_len(), theirs.packet.tag_len());
            assert_eq!(
                ours.confidentiality_limit(),
                theirs.packet.confidentiality_limit()
            );
            assert_eq!(ours.integrity_limit(), theirs.packet.integrity_limit());
        }
        assert_eq!(keys.header.local.sample_size(), theirs.header.sample_len());
    }
}

#[test]
fn payloads_shorter_than_a_tag_are_refused() {
    let keys = initial_keys(&ConnectionId::new(b"8 bytes."));
    for len in 0..TAG_LEN {
        assert!(opened(&*keys.packet.remote, 1, b"", &vec![0; len]).is_none());
    }
}

#[test]
fn secrets_of_the_wrong_length_are_refused() {
    for suite in SUITES {
        let right = if suite == SUITES[1] { 48 } else { 32 };
        for len in [0, 16, 32, 48, 64] {
            let keys = one_rtt_keys(suite, &vec![1; len], &vec![2; len]);
            assert_eq!(keys.is_some(), len == right, "{suite:?}, {len} bytes");
        }
    }
    assert!(one_rtt_keys(CipherSuite::TLS13_AES_128_CCM_SHA256, &[0; 32], &[0; 32]).is_none());
}

#[test]
fn keys_are_as_small_as_stated() {
    assert_eq!(size_of::<CompactPacketKey<Aes128Gcm>>(), 28);
    assert_eq!(size_of::<CompactPacketKey<Aes256Gcm>>(), 44);
    assert_eq!(size_of::<Phase<Aes128Gcm>>(), 80);
}
