use headgate_common::token::{NEW_TOKEN_LEN, TokenState};

use super::*;

fn key() -> TokenKey {
    TokenKey::new(Keys::from_secret(&[7; 32]))
}

/// quinn-proto's plaintext of a Retry token.
fn plain_retry(address: &[u8], cid: &[u8], issued_s: u64) -> Vec<u8> {
    let mut plain = vec![KIND_RETRY];
    plain.push(if address.len() == 4 { IPV4 } else { IPV6 });
    plain.extend(address);
    plain.extend(4433u16.to_be_bytes());
    plain.push(cid.len() as u8);
    plain.extend(cid);
    plain.extend(issued_s.to_be_bytes());
    plain
}

fn round_trip(key: &TokenKey, plain: &[u8]) -> Vec<u8> {
    let seal = key.aead_from_hkdf(&[5; 16]);
    let mut sealed = plain.to_vec();
    seal.seal(&mut sealed, &[]).unwrap();
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 0x10;
        assert!(seal.open(&mut changed, &[]).is_err(), "octet {at}");
    }
    let other = key.aead_from_hkdf(&[6; 16]);
    assert!(other.open(&mut sealed.clone(), &[]).is_err());
    seal.open(&mut sealed, &[]).unwrap().to_vec()
}

#[test]
fn what_is_sealed_opens_as_it_was() {
    for address in [vec![10, 1, 2, 3], (1..17).collect()] {
        for cid_len in [0, 8, 14, 20] {
            let cid: Vec<u8> = (0..cid_len).collect();
            let plain = plain_retry(&address, &cid, unix_s());
            assert_eq!(round_trip(&key(), &plain), plain);
        }
        let mut plain = vec![KIND_NEW, if address.len() == 4 { IPV4 } else { IPV6 }];
        plain.extend(&address);
        plain.extend(unix_s().to_be_bytes());
        assert_eq!(round_trip(&key(), &plain), plain);
    }
}

#[test]
fn an_ipv4_address_in_ipv6_form_opens_as_sockets_show_it() {
    let mut mapped = vec![0; 10];
    mapped.extend([0xff, 0xff, 10, 1, 2, 3]);
    let plain = plain_retry(&mapped, &[1; 8], 77);
    let shown = plain_retry(&[10, 1, 2, 3], &[1; 8], 77);
    assert_eq!(round_trip(&key(), &plain), shown);
}

#[test]
fn the_kernel_takes_what_user_space_has_sealed() {
    let keys = Keys::from_secret(&[7; 32]).token_keys(unix_s());
    let address = [
        0,
        0xffff_0000 | u64::from(u32::from_le_bytes([10, 1, 2, 3])) << 32,
    ];
    let words = |mut sealed: Vec<u8>| {
        sealed.extend([5; 16]);
        let mut words = [0; RETRY_WORDS];
        for (word, bytes) in words.iter_mut().zip(sealed.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        (sealed.len(), words)
    };
    let seal = key().aead_from_hkdf(&[5; 16]);
    let mut sealed = plain_retry(&[10, 1, 2, 3], &[1; 8], unix_s());
    seal.seal(&mut sealed, &[]).unwrap();
    let (len, token) = words(sealed);
    assert_eq!(len, RETRY_TOKEN_LEN);
    let sender = Sender {
        address,
        port: u16::from_le_bytes(4433u16.to_be_bytes()),
    };
    let now = unix_s() as u32;
    assert_eq!(keys.check_retry(&token, sender, now, 15), TokenState::Retry);

    let mut sealed = vec![KIND_NEW, IPV4, 10, 1, 2, 3];
    sealed.extend(unix_s().to_be_bytes());
    seal.seal(&mut sealed, &[]).unwrap();
    let (len, token) = words(sealed);
    assert_eq!(len, NEW_TOKEN_LEN);
    assert_eq!(keys.check_new(&token, address, now), TokenState::New);
}

#[test]
fn a_token_is_used_once_and_never_after_a_restart() {
    let used = UsedTokens::default();
    let life = Duration::from_secs(1_000);
    let later = used.since + Duration::from_secs(2);
    assert!(used.check_and_insert(1, later, life).is_ok());
    assert!(used.check_and_insert(1, later, life).is_err());
    assert!(used.check_and_insert(2, later, life).is_ok());
    assert!(
        used.check_and_insert(3, used.since, life).is_err(),
        "an earlier process may have seen it"
    );
}

#[test]
fn load_turns_retry_on_and_its_end_turns_it_off() {
    let start = Instant::now();
    let gate = RetryGate::new(start);
    let at = |ms: u64| start + Duration::from_millis(ms);
    assert!(!gate.asks(at(1_000)));
    gate.set(RetryMode::Always, 0, 0);
    assert!(gate.asks(at(1_000)));
    gate.set(RetryMode::Auto, 100, 50);
    // 80 a second: not above the threshold.
    assert!((0..800).all(|n| !gate.asks(at(2_000 + n * 1_000 / 80))));
    // 1,000 a second: above.
    let asked = (0..1_000).filter(|n| gate.asks(at(20_000 + n))).count();
    assert!((880..=995).contains(&asked), "{asked}");
    // 80 a second is above the lower threshold: it stays on.
    assert!((0..1_600).all(|n| gate.asks(at(21_000 + n * 1_000 / 80))));
    // 10 a second is below: off after some seconds.
    let asked = (0..200).filter(|n| gate.asks(at(41_000 + n * 100))).count();
    assert!((50..=80).contains(&asked), "{asked}");
    assert!(!gate.asks(at(61_000)));
}
