//! Key exchange that a quantum computer can't undo later: X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem), which is as
//! strong as the stronger of its two halves, ML-KEM-768 (FIPS 203) and X25519. ring has no ML-KEM.

use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::{
    Error, NamedGroup, PeerMisbehaved, ProtocolVersion,
    crypto::{
        ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup,
        ring::kx_group::X25519,
    },
    ffdhe_groups::FfdheGroup,
};
use zeroize::Zeroizing;

/// The group.
pub static X25519_MLKEM768: &dyn SupportedKxGroup = &Hybrid;

/// Bytes of ML-KEM-768's encapsulation key (FIPS 203 §8), the first part of a client's key share.
const ENCAPSULATION_KEY_BYTES: usize = 1_184;
/// Bytes of its ciphertext, the first part of a server's key share.
const CIPHERTEXT_BYTES: usize = 1_088;
/// Bytes of a public key of X25519 (RFC 7748 §5), the rest of both.
const X25519_BYTES: usize = 32;

const INVALID_KEY_SHARE: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

#[derive(Debug)]
struct Hybrid;

impl SupportedKxGroup for Hybrid {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let x25519 = X25519.start()?;
        let pair = mlkem768::generate_key_pair(random()?);
        let share = [&pair.pk()[..], x25519.pub_key()].concat();
        Ok(Box::new(Started {
            decapsulation_key: Zeroizing::new(*pair.sk()),
            x25519,
            share,
        }))
    }

    fn start_and_complete(&self, client_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let (key, theirs) = split::<ENCAPSULATION_KEY_BYTES>(client_share)?;
        let key = MlKem768PublicKey::from(key);
        // FIPS 203 §7.2: the check of the modulus.
        if !mlkem768::validate_public_key(&key) {
            return Err(INVALID_KEY_SHARE);
        }
        let x25519 = X25519.start_and_complete(theirs)?;
        let (ciphertext, secret) = mlkem768::encapsulate(&key, random()?);
        Ok(CompletedKeyExchange {
            group: self.name(),
            pub_key: [&ciphertext.as_slice()[..], &x25519.pub_key].concat(),
            secret: joined(secret, &x25519.secret),
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

/// A client's half of a key exchange.
struct Started {
    decapsulation_key: Zeroizing<[u8; 2_400]>,
    x25519: Box<dyn ActiveKeyExchange>,
    share: Vec<u8>,
}

impl ActiveKeyExchange for Started {
    fn complete(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        let (ciphertext, theirs) = split::<CIPHERTEXT_BYTES>(server_share)?;
        let x25519 = self.x25519.complete(theirs)?;
        let key = MlKem768PrivateKey::from(*self.decapsulation_key);
        let ciphertext = MlKem768Ciphertext::from(ciphertext);
        Ok(joined(mlkem768::decapsulate(&key, &ciphertext), &x25519))
    }

    /// What a server that knows only X25519 can take, so that it needs no HelloRetryRequest.
    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        Some((self.x25519.group(), self.x25519.pub_key()))
    }

    fn complete_hybrid_component(
        self: Box<Self>,
        server_share: &[u8],
    ) -> Result<SharedSecret, Error> {
        self.x25519.complete(server_share)
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

/// The parts of a key share: ML-KEM's, of `N` bytes, and X25519's.
fn split<const N: usize>(share: &[u8]) -> Result<([u8; N], &[u8]), Error> {
    match share.split_first_chunk::<N>() {
        Some((ml_kem, x25519)) if x25519.len() == X25519_BYTES => Ok((*ml_kem, x25519)),
        _ => Err(INVALID_KEY_SHARE),
    }
}

fn joined(ml_kem: [u8; 32], x25519: &SharedSecret) -> SharedSecret {
    let ml_kem = Zeroizing::new(ml_kem);
    // Moved, not copied: rustls overwrites it when it is done.
    SharedSecret::from([ml_kem.as_slice(), x25519.secret_bytes()].concat())
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Error::FailedToGetRandomBytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(secret: &SharedSecret) -> Vec<u8> {
        secret.secret_bytes().to_vec()
    }

    #[test]
    fn both_sides_have_the_same_secret_and_nobody_has_it_twice() {
        let mut seen = Vec::new();
        for _ in 0..8 {
            let client = X25519_MLKEM768.start().unwrap();
            assert_eq!(client.pub_key().len(), 1_216);
            let server = X25519_MLKEM768
                .start_and_complete(client.pub_key())
                .unwrap();
            assert_eq!(
                (server.pub_key.len(), server.group),
                (1_120, client.group())
            );
            let agreed = secret(&client.complete(&server.pub_key).unwrap());
            assert_eq!(agreed, secret(&server.secret));
            assert_eq!(agreed.len(), 64);
            assert!(!seen.contains(&agreed));
            seen.push(agreed);
        }
    }

    /// An implementation of ML-KEM by others, in both roles; the order of the parts is the draft's.
    #[test]
    fn another_implementation_agrees() {
        use ml_kem::{
            MlKem768,
            kem::{Decapsulate, Encapsulate, Kem, KeyExport},
            ml_kem_768::EncapsulationKey,
        };
        let (their_key, public) = MlKem768::generate_keypair();
        let x25519 = X25519.start().unwrap();
        let share = [public.to_bytes().as_slice(), x25519.pub_key()].concat();
        let server = X25519_MLKEM768.start_and_complete(&share).unwrap();
        let (ciphertext, theirs) = server.pub_key.split_at(CIPHERTEXT_BYTES);
        let decapsulated = their_key.decapsulate(&ciphertext.try_into().unwrap());
        let classical = x25519.complete(theirs).unwrap();
        let expected = [decapsulated.as_slice(), classical.secret_bytes()].concat();
        assert_eq!(secret(&server.secret), expected);

        let client = X25519_MLKEM768.start().unwrap();
        let (key, ours) = client.pub_key().split_at(ENCAPSULATION_KEY_BYTES);
        let key = EncapsulationKey::new(key.try_into().unwrap()).unwrap();
        let (ciphertext, encapsulated) = key.encapsulate();
        let x25519 = X25519.start_and_complete(ours).unwrap();
        let share = [ciphertext.as_slice(), &x25519.pub_key[..]].concat();
        let expected = [encapsulated.as_slice(), x25519.secret.secret_bytes()].concat();
        assert_eq!(secret(&client.complete(&share).unwrap()), expected);
    }

    #[test]
    fn wrong_shares_are_refused() {
        let refused = |share: &[u8]| {
            matches!(
                X25519_MLKEM768.start_and_complete(share),
                Err(INVALID_KEY_SHARE)
            )
        };
        let good = X25519_MLKEM768.start().unwrap().pub_key().to_vec();
        assert!(!refused(&good));
        assert!(refused(&good[..1_215]) && refused(&[&good[..], &[0]].concat()) && refused(&[]));
        // A coefficient that is no number modulo 3,329.
        let mut large = good.clone();
        large[..2].fill(0xff);
        assert!(refused(&large));
        // X25519 with a point of small order, whose result everybody knows.
        let mut small = good.clone();
        small[ENCAPSULATION_KEY_BYTES..].fill(0);
        assert!(refused(&small) || X25519_MLKEM768.start_and_complete(&small).is_err());
        let server = X25519_MLKEM768.start_and_complete(&good).unwrap();
        for length in [0, CIPHERTEXT_BYTES, server.pub_key.len() - 1] {
            let client = X25519_MLKEM768.start().unwrap();
            assert!(client.complete(&server.pub_key[..length]).is_err());
        }
    }

    /// A server without the group takes the other key share, at no cost of time.
    #[test]
    fn the_classical_half_stands_for_itself() {
        let client = X25519_MLKEM768.start().unwrap();
        let (group, share) = client.hybrid_component().unwrap();
        assert_eq!(group, NamedGroup::X25519);
        let server = X25519.start_and_complete(share).unwrap();
        let agreed = client.complete_hybrid_component(&server.pub_key).unwrap();
        assert_eq!(secret(&agreed), secret(&server.secret));
    }
}
