//! Packet protection keys (RFC 9001 §5) that keep only what they are made from.
//!
//! rustls's keys hold their cipher's expanded state, 550 bytes for each direction and phase of a connection. An idle
//! connection uses them once a minute, so these here keep key and IV (28 or 44 bytes) and expand for each packet,
//! which takes about 0.1 µs where the CPU has AES instructions. They are derived here, from the secrets of TLS.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use quinn_proto::ConnectionId;
use quinn_proto::crypto::{CryptoError, HeaderKey, KeyPair, Keys, PacketKey};
use ring::{aead, hkdf};
use rustls::CipherSuite;

/// Length of the tag that each AEAD of TLS 1.3 appends (RFC 9001 §5.3).
const TAG_LEN: usize = 16;
/// Length of the ciphertext sample that header protection is made from (RFC 9001 §5.4.2).
const SAMPLE_LEN: usize = 16;
/// RFC 9001 §5.2.
const INITIAL_SALT: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad,
    0xcc, 0xbb, 0x7f, 0x0a,
];

thread_local! {
    static OPENED: Cell<Decryptions> = const { Cell::new(Decryptions { authentic: 0, failed: 0 }) };
}

/// What became of packets: quinn-proto drops those that don't decrypt, and doesn't tell.
#[derive(Clone, Copy, Debug)]
pub struct Decryptions {
    /// Packets that did.
    pub authentic: u32,
    /// Packets that didn't.
    pub failed: u32,
}

impl Decryptions {
    /// Those of this thread so far, modulo 2³².
    pub fn so_far() -> Self {
        OPENED.get()
    }

    /// Those of this thread since then.
    pub fn since(before: Self) -> Self {
        let now = Self::so_far();
        Self {
            authentic: now.authentic.wrapping_sub(before.authentic),
            failed: now.failed.wrapping_sub(before.failed),
        }
    }

    fn count(is_authentic: bool) {
        let mut count = OPENED.get();
        let of = if is_authentic {
            &mut count.authentic
        } else {
            &mut count.failed
        };
        *of = of.wrapping_add(1);
        OPENED.set(count);
    }
}

/// A server's keys for Initial packets, which follow from the client's first Destination Connection ID (RFC 9001 §5.2).
///
/// quinn-proto asks for them twice in a row for each new connection, to read its first packet and to answer, so the
/// thread's last ones are kept until they are asked for again. They are no secret.
pub(super) fn initial_keys(dst_cid: &ConnectionId) -> Keys {
    type Derived = (ConnectionId, [DirectionKeys<Aes128Gcm>; 2]);
    thread_local! {
        static LAST: Cell<Option<Derived>> = const { Cell::new(None) };
    }
    let [server, client] = match LAST.take() {
        Some((cid, keys)) if cid == *dst_cid => keys,
        _ => {
            let initial = hkdf::Salt::new(hkdf::HKDF_SHA256, &INITIAL_SALT).extract(dst_cid);
            let keys = [b"server in", b"client in"].map(|label| {
                let secret: [u8; 32] = expand_label(&initial, label);
                DirectionKeys::derive(&secret)
            });
            LAST.set(Some((*dst_cid, keys)));
            keys
        }
    };
    both(server, client)
}

/// The 1-RTT keys from the traffic secrets of both sides, and what the later ones are made from. `None` if the secrets
/// are not as long as those of `suite`.
pub(super) fn one_rtt_keys(
    suite: CipherSuite,
    local: &[u8],
    remote: &[u8],
) -> Option<(Keys, Arc<dyn NextPhase>)> {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => first_phase::<Aes128Gcm>(local, remote),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => first_phase::<Aes256Gcm>(local, remote),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => {
            first_phase::<ChaCha20Poly1305>(local, remote)
        }
        _ => None,
    }
}

fn first_phase<C: Cipher>(local: &[u8], remote: &[u8]) -> Option<(Keys, Arc<dyn NextPhase>)> {
    let former = [
        C::Secret::try_from(local).ok()?,
        C::Secret::try_from(remote).ok()?,
    ];
    let [local, remote] = [&former[0], &former[1]].map(DirectionKeys::<C>::derive);
    let keys = both(local, remote);
    Some((
        keys,
        Arc::new(Phase::<C> {
            former,
            keys: OnceLock::new(),
        }),
    ))
}

fn both<C: Cipher>(local: DirectionKeys<C>, remote: DirectionKeys<C>) -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(local.header),
            remote: Box::new(remote.header),
        },
        packet: KeyPair {
            local: Box::new(local.packet),
            remote: Box::new(remote.packet),
        },
    }
}

/// A key phase (RFC 9001 §6) that a key update leads to.
pub(super) trait NextPhase: Send + Sync {
    /// Its packet keys, which are derived when one of them is first used.
    fn packet_keys(self: Arc<Self>) -> KeyPair<Box<dyn PacketKey>>;
    /// The phase after it.
    fn successor(&self) -> Arc<dyn NextPhase>;
}

struct Phase<C: Cipher> {
    /// The secrets of the phase before, ours and the peer's.
    former: [C::Secret; 2],
    keys: OnceLock<Box<[CompactPacketKey<C>; 2]>>,
}

impl<C: Cipher> Phase<C> {
    /// The secrets of this phase (RFC 9001 §6.1).
    fn secrets(&self) -> [C::Secret; 2] {
        next_secrets::<C>(&self.former)
    }

    fn keys(&self) -> &[CompactPacketKey<C>; 2] {
        self.keys.get_or_init(|| {
            let [local, remote] = self.secrets();
            Box::new([local, remote].map(|secret| CompactPacketKey::derive(&C::prk(&secret))))
        })
    }
}

impl<C: Cipher> NextPhase for Phase<C> {
    fn packet_keys(self: Arc<Self>) -> KeyPair<Box<dyn PacketKey>> {
        KeyPair {
            local: Box::new(LazyKey {
                phase: self.clone(),
                direction: Direction::Local,
            }),
            remote: Box::new(LazyKey {
                phase: self,
                direction: Direction::Remote,
            }),
        }
    }

    fn successor(&self) -> Arc<dyn NextPhase> {
        Arc::new(Self {
            former: self.secrets(),
            keys: OnceLock::new(),
        })
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Local = 0,
    Remote = 1,
}

/// The packet key of one direction of a phase.
struct LazyKey<C: Cipher> {
    phase: Arc<Phase<C>>,
    direction: Direction,
}

impl<C: Cipher> LazyKey<C> {
    fn key(&self) -> &CompactPacketKey<C> {
        &self.phase.keys()[self.direction as usize]
    }
}

impl<C: Cipher> PacketKey for LazyKey<C> {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.key().encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.key().decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    // quinn-proto asks for the limits at each key update: they are known without the key.
    fn confidentiality_limit(&self) -> u64 {
        C::CONFIDENTIALITY_LIMIT
    }

    fn integrity_limit(&self) -> u64 {
        C::INTEGRITY_LIMIT
    }
}

/// What differs between the suites.
trait Cipher: Copy + Send + Sync + 'static {
    /// An array of the AEAD key's length.
    type Key: AsRef<[u8]> + AsMut<[u8]> + Copy + Default + Send + Sync;
    /// An array of the hash's length.
    type Secret: AsRef<[u8]> + AsMut<[u8]> + for<'a> TryFrom<&'a [u8]> + Copy + Send + Sync;
    /// Packets that may be encrypted with one key (RFC 9001 §6.6, B.1.1).
    const CONFIDENTIALITY_LIMIT: u64;
    /// Forged packets after which the connection must end (RFC 9001 §6.6, B.1.2).
    const INTEGRITY_LIMIT: u64;
    fn aead() -> &'static aead::Algorithm;
    fn header_protection() -> &'static aead::quic::Algorithm;
    fn hkdf() -> hkdf::Algorithm;

    fn prk(secret: &Self::Secret) -> hkdf::Prk {
        hkdf::Prk::new_less_safe(Self::hkdf(), secret.as_ref())
    }
}

#[derive(Clone, Copy)]
struct Aes128Gcm;
#[derive(Clone, Copy)]
struct Aes256Gcm;
#[derive(Clone, Copy)]
struct ChaCha20Poly1305;

impl Cipher for Aes128Gcm {
    type Key = [u8; 16];
    type Secret = [u8; 32];
    const CONFIDENTIALITY_LIMIT: u64 = 1 << 23;
    const INTEGRITY_LIMIT: u64 = 1 << 52;
    fn aead() -> &'static aead::Algorithm {
        &aead::AES_128_GCM
    }
    fn header_protection() -> &'static aead::quic::Algorithm {
        &aead::quic::AES_128
    }
    fn hkdf() -> hkdf::Algorithm {
        hkdf::HKDF_SHA256
    }
}

impl Cipher for Aes256Gcm {
    type Key = [u8; 32];
    type Secret = [u8; 48];
    const CONFIDENTIALITY_LIMIT: u64 = 1 << 23;
    const INTEGRITY_LIMIT: u64 = 1 << 52;
    fn aead() -> &'static aead::Algorithm {
        &aead::AES_256_GCM
    }
    fn header_protection() -> &'static aead::quic::Algorithm {
        &aead::quic::AES_256
    }
    fn hkdf() -> hkdf::Algorithm {
        hkdf::HKDF_SHA384
    }
}

impl Cipher for ChaCha20Poly1305 {
    type Key = [u8; 32];
    type Secret = [u8; 32];
    // More than a connection has packet numbers: no limit (RFC 9001 §6.6).
    const CONFIDENTIALITY_LIMIT: u64 = u64::MAX;
    const INTEGRITY_LIMIT: u64 = 1 << 36;
    fn aead() -> &'static aead::Algorithm {
        &aead::CHACHA20_POLY1305
    }
    fn header_protection() -> &'static aead::quic::Algorithm {
        &aead::quic::CHACHA20
    }
    fn hkdf() -> hkdf::Algorithm {
        hkdf::HKDF_SHA256
    }
}

/// The secrets of the key phase after the one of these, of both sides (RFC 9001 §6.1).
fn next_secrets<C: Cipher>(former: &[C::Secret; 2]) -> [C::Secret; 2] {
    [&former[0], &former[1]].map(|former| {
        let mut secret = *former;
        expand_label_into(&C::prk(former), b"quic ku", secret.as_mut());
        secret
    })
}

/// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
fn expand_label_into(prk: &hkdf::Prk, label: &[u8], out: &mut [u8]) {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    let len = (out.len() as u16).to_be_bytes();
    let label_len = [(PREFIX.len() + label.len()) as u8];
    let info = [&len[..], &label_len, PREFIX, label, &[0]];
    prk.expand(&info, Len(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("bug: the output is at most a hash long");
}

fn expand_label<const N: usize>(prk: &hkdf::Prk, label: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    expand_label_into(prk, label, &mut out);
    out
}

/// The keys of one direction.
#[derive(Clone, Copy)]
struct DirectionKeys<C: Cipher> {
    packet: CompactPacketKey<C>,
    header: CompactHeaderKey<C>,
}

impl<C: Cipher> DirectionKeys<C> {
    /// RFC 9001 §5.1.
    fn derive(secret: &C::Secret) -> Self {
        let prk = C::prk(secret);
        let mut header = CompactHeaderKey::<C> {
            key: C::Key::default(),
        };
        expand_label_into(&prk, b"quic hp", header.key.as_mut());
        Self {
            packet: CompactPacketKey::derive(&prk),
            header,
        }
    }
}

#[derive(Clone, Copy)]
struct CompactPacketKey<C: Cipher> {
    key: C::Key,
    iv: [u8; aead::NONCE_LEN],
    cipher: PhantomData<C>,
}

impl<C: Cipher> CompactPacketKey<C> {
    fn derive(prk: &hkdf::Prk) -> Self {
        let mut key = C::Key::default();
        expand_label_into(prk, b"quic key", key.as_mut());
        Self {
            key,
            iv: expand_label(prk, b"quic iv"),
            cipher: PhantomData,
        }
    }

    fn expand(&self) -> aead::LessSafeKey {
        let key = aead::UnboundKey::new(C::aead(), self.key.as_ref());
        aead::LessSafeKey::new(key.expect("bug: the key's length is the cipher's"))
    }

    /// RFC 9001 §5.3: the IV, with the packet number xored into its end.
    fn nonce(&self, packet_number: u64) -> aead::Nonce {
        let mut nonce = self.iv;
        let number = packet_number.to_be_bytes();
        for (byte, number) in nonce[aead::NONCE_LEN - number.len()..]
            .iter_mut()
            .zip(number)
        {
            *byte ^= number;
        }
        aead::Nonce::assume_unique_for_key(nonce)
    }
}

impl<C: Cipher> PacketKey for CompactPacketKey<C> {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let (header, payload) = buf.split_at_mut(header_len);
        let (payload, tag_place) = payload.split_at_mut(payload.len() - TAG_LEN);
        let tag = self
            .expand()
            .seal_in_place_separate_tag(self.nonce(packet), aead::Aad::from(&*header), payload)
            .expect("bug: a UDP payload is far below what an AEAD takes");
        tag_place.copy_from_slice(tag.as_ref());
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        let opened =
            self.expand()
                .open_in_place(self.nonce(packet), aead::Aad::from(header), payload);
        Decryptions::count(opened.is_ok());
        let plain = opened.map_err(|_| CryptoError)?;
        let plain_len = plain.len();
        payload.truncate(plain_len);
        Ok(())
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

#[derive(Clone, Copy)]
struct CompactHeaderKey<C: Cipher> {
    key: C::Key,
}

impl<C: Cipher> CompactHeaderKey<C> {
    /// RFC 9001 §5.4.1. `protected` says that the packet number's length has yet to be uncovered.
    fn apply(&self, pn_offset: usize, packet: &mut [u8], protected: bool) {
        // The sample starts where a packet number of four bytes would end (§5.4.2).
        let (header, sample) = packet.split_at_mut(pn_offset + 4);
        let key = aead::quic::HeaderProtectionKey::new(C::header_protection(), self.key.as_ref())
            .expect("bug: the key's length is the cipher's");
        let [first_mask, number_mask @ ..] = key
            .new_mask(&sample[..SAMPLE_LEN])
            .expect("bug: the sample's length is the cipher's");
        let is_long = header[0] & 0x80 != 0;
        let first_mask = first_mask & if is_long { 0x0f } else { 0x1f };
        let plain = if protected {
            header[0] ^ first_mask
        } else {
            header[0]
        };
        let number_len = usize::from(plain & 0x03) + 1;
        header[0] ^= first_mask;
        for (byte, mask) in header[pn_offset..]
            .iter_mut()
            .zip(number_mask)
            .take(number_len)
        {
            *byte ^= mask;
        }
    }
}

impl<C: Cipher> HeaderKey for CompactHeaderKey<C> {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.apply(pn_offset, packet, true);
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.apply(pn_offset, packet, false);
    }

    fn sample_size(&self) -> usize {
        SAMPLE_LEN
    }
}

mod client;
#[cfg(test)]
mod tests;

pub use client::ClientKeys;
