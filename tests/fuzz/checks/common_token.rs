//! What must hold for any token, and for a change of one of ours. The fuzz target and the replay of the corpus share this.

use headgate_common::SipKey;
use headgate_common::token::{
    NEW_TOKEN_LIFE_S, OriginalCid, RETRY_WORDS, Sender, TokenEpoch, TokenKeys, TokenState,
};

const LIFE_S: u32 = 15;

fn keys() -> TokenKeys {
    let key = |n| SipKey { k0: n, k1: !n };
    TokenKeys {
        current: TokenEpoch::new(7, key(1), key(2)),
        former: TokenEpoch::new(6, key(3), key(4)),
    }
}

fn word(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(data.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}

/// `data`: what to do; who sends; when; and a token, or what is changed in one of ours.
pub fn check(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let keys = keys();
    let sender = Sender {
        address: [word(data, 0), word(data, 8)],
        port: word(data, 16) as u16,
    };
    let now_s = word(data, 18) as u32;
    let rest = data.get(22..).unwrap_or_default();
    let mut token: [u64; RETRY_WORDS] = core::array::from_fn(|index| word(rest, 8 * index));
    if choice & 1 == 0 {
        // Nobody invents 128 bits of MAC: the fuzzer neither.
        let (retry, new) = (
            keys.check_retry(&token, sender, now_s, LIFE_S),
            keys.check_new(&token, sender.address, now_s),
        );
        assert_eq!((retry, new), (TokenState::Foreign, TokenState::Foreign));
        return;
    }
    let nonce = [token[8], token[9]];
    let age_s = token[7] as u32 % 200_000;
    let issued_s = now_s.wrapping_sub(age_s);
    let cid = OriginalCid {
        words: [token[0], token[1], token[2] & 0xffff_ffff],
        len: 8 + choice % 13,
    };
    let wraps = now_s < age_s;
    if choice & 2 == 0 {
        token = keys.retry(sender, cid, issued_s, nonce);
        let [_, a, b, c, d, e, ..] = *keys.open_retry(&token).expect("it is ours");
        assert_eq!([a, b], sender.address);
        assert_eq!([c, d, e & 0xffff_ffff], cid.words);
        assert_eq!((e >> 32) as u8, cid.len);
        let state = keys.check_retry(&token, sender, now_s, LIFE_S);
        let in_time = !wraps && age_s <= LIFE_S;
        let expected = if in_time {
            TokenState::Retry
        } else {
            TokenState::RetryExpired
        };
        assert_eq!(state, expected);
        let other = Sender {
            port: sender.port ^ 1,
            ..sender
        };
        let state = keys.check_retry(&token, other, now_s, LIFE_S);
        assert_eq!(state, TokenState::RetryElsewhere);
        token[usize::from(choice >> 2) % RETRY_WORDS] ^= 1 << (choice >> 2);
        let state = keys.check_retry(&token, sender, now_s, LIFE_S);
        assert_eq!(state, TokenState::Foreign);
    } else {
        let [a, b, c, d, e, f, g] = keys.new_token(sender.address, issued_s, nonce);
        token = [a, b, c, d, e, f, g, 1, 2, 3];
        let state = keys.check_new(&token, sender.address, now_s);
        let in_time = !wraps && age_s <= NEW_TOKEN_LIFE_S;
        let expected = if in_time {
            TokenState::New
        } else {
            TokenState::NewInvalid
        };
        assert_eq!(state, expected);
        let [high, low] = sender.address;
        let state = keys.check_new(&token, [high ^ 1, low], now_s);
        assert_eq!(state, TokenState::NewInvalid);
        token[usize::from(choice >> 2) % 7] ^= 1 << (choice >> 2);
        let state = keys.check_new(&token, sender.address, now_s);
        assert_eq!(state, TokenState::Foreign);
    }
}
