//! Retry in the kernel: who has to prove an address, which tokens are taken, and what an answer looks like.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headgate::kernel::{KernelSettings, RetrySettings};
use headgate_common::frame::Source;
use headgate_common::records::{Budgets, Limit, RetryMode};
use headgate_common::token::{OriginalCid, RETRY_TOKEN_LEN, Sender, TokenKeys};
use headgate_common::{AnswerReason, DropReason, PassReason};
use headgate_tests::packets::{Packet, Transport, check_turned, initial, long};
use headgate_tests::rig::{Outcome, Rig, settings, why_not};
use headgate_tests::skip;
use ring::aead;

const RETRY: Outcome = Outcome::Answered(AnswerReason::Retry);
const PORT: u16 = 40_000;

fn rig(mode: RetryMode, budgets: Budgets) -> Rig {
    let retry = RetrySettings {
        mode,
        ..RetrySettings::default()
    };
    let settings = KernelSettings {
        retry,
        budgets,
        ..settings()
    };
    Rig::with(settings, 4)
}

fn v4() -> IpAddr {
    IpAddr::from([198, 51, 100, 7])
}

fn v6() -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0xa, 0xb, 1, 2, 3, 4])
}

fn now_s() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs() as u32
}

fn keys(rig: &Rig) -> TokenKeys {
    rig.keys.token_keys(now_s().into())
}

fn sender(address: IpAddr) -> Sender {
    Sender {
        address: Source::from(address).mapped(),
        port: PORT.swap_bytes(),
    }
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn retry_token(rig: &Rig, address: IpAddr, issued_s: u32) -> Vec<u8> {
    let cid = OriginalCid {
        words: [3, 0, 0],
        len: 8,
    };
    bytes(&keys(rig).retry(sender(address), cid, issued_s, [7, 8]))
}

fn new_token(rig: &Rig, address: IpAddr, issued_s: u32) -> Vec<u8> {
    bytes(&keys(rig).new_token(sender(address).address, issued_s, [5, 6]))
}

fn judge(rig: &Rig, source: IpAddr, token: &[u8]) -> Outcome {
    let payload = initial(&[9; 8], &[1; 8], token, 1200);
    rig.judge(&Packet::quic(source, payload).bytes()).0
}

/// RFC 9001 §5.8, by an AES-GCM that the kernel's knows nothing of.
fn integrity_tag(original: &[u8], retry: &[u8]) -> Vec<u8> {
    let key = [
        0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a, 0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68, 0xc8,
        0x4e,
    ];
    let nonce = [
        0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb,
    ];
    let mut pseudo = vec![original.len() as u8];
    pseudo.extend(original);
    pseudo.extend(retry);
    let key = aead::UnboundKey::new(&aead::AES_128_GCM, &key).expect("a key");
    let tag = aead::LessSafeKey::new(key).seal_in_place_separate_tag(
        aead::Nonce::assume_unique_for_key(nonce),
        aead::Aad::from(pseudo),
        &mut [],
    );
    tag.expect("nothing is sealed").as_ref().to_vec()
}

/// What a Retry packet says: (Source Connection ID, token). RFC 9000 §17.2.5.
fn read_retry(payload: &[u8], dcid: &[u8], scid: &[u8]) -> (Vec<u8>, Vec<u8>) {
    assert_eq!(
        payload[0] & 0xf0,
        0xf0,
        "a long header of type 3, fixed bit set"
    );
    let mut expected = vec![0, 0, 0, 1, scid.len() as u8];
    expected.extend(scid);
    let at = 1 + expected.len();
    assert_eq!(payload[1..at], expected[..], "version 1, to the client");
    let own_len = usize::from(payload[at]);
    assert!((8..=20).contains(&own_len));
    let own = payload[at + 1..at + 1 + own_len].to_vec();
    assert_ne!(
        own, dcid,
        "RFC 9000 §17.2.5.1: not the client's choice again"
    );
    let (retry, tag) = payload.split_at(payload.len() - 16);
    assert_eq!(tag, integrity_tag(dcid, retry), "the integrity tag");
    let token = retry[at + 1 + own_len..].to_vec();
    assert_eq!(token.len(), RETRY_TOKEN_LEN);
    (own, token)
}

#[test]
fn an_answer_is_right_to_the_last_byte_and_its_token_opens_the_door() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = rig(RetryMode::Always, Budgets::UNLIMITED);
    for (dcid_len, scid_len) in
        (8..=20u8).flat_map(|dcid_len| [0, 1, 8, 19, 20u8].map(|scid_len| (dcid_len, scid_len)))
    {
        let dcid: Vec<u8> = (0..dcid_len).map(|i| 0x80 + i).collect();
        let scid: Vec<u8> = (0..scid_len).map(|i| 0x10 + i).collect();
        for source in [v4(), v6()] {
            for vlan in [None, Some(9)] {
                let with = |dcid: &[u8], token: &[u8], source| Packet {
                    vlan,
                    ..Packet::quic(source, initial(dcid, &scid, token, 1200))
                };
                let packet = with(&dcid, &[], source);
                let request = packet.bytes();
                let (outcome, answer) = rig.judge(&request);
                assert_eq!(outcome, RETRY);
                let payload = check_turned(&packet, &request, &answer);
                assert!(answer.len() <= request.len(), "never an amplifier");
                let (own, token) = read_retry(payload, &dcid, &scid);
                let again = with(&own, &token, source);
                let passed = Outcome::Passed(PassReason::InitialRetryToken);
                assert_eq!(rig.judge(&again.bytes()), (passed, again.bytes()));
                let elsewhere = match source {
                    IpAddr::V4(_) => IpAddr::from([198, 51, 100, 8]),
                    IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0xa, 0xb, 1, 2, 3, 5]),
                };
                assert_eq!(
                    rig.judge(&with(&own, &token, elsewhere).bytes()).0,
                    Outcome::Dropped(DropReason::RetryTokenElsewhere)
                );
                let mut other_port = again;
                if let Transport::Udp { from, .. } = &mut other_port.transport {
                    *from += 1;
                }
                assert_eq!(
                    rig.judge(&other_port.bytes()).0,
                    Outcome::Dropped(DropReason::RetryTokenElsewhere)
                );
            }
        }
    }
}

#[test]
fn each_token_comes_to_what_it_is_worth() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let (always, never) = (
        rig(RetryMode::Always, Budgets::UNLIMITED),
        rig(RetryMode::Never, Budgets::UNLIMITED),
    );
    let passed = Outcome::Passed;
    let answered = Outcome::Answered;
    let dropped = Outcome::Dropped;
    for source in [v4(), v6()] {
        for (rig, is_on) in [(&always, true), (&never, false)] {
            let either = |answer, pass| {
                if is_on {
                    answered(answer)
                } else {
                    passed(pass)
                }
            };
            let none = either(AnswerReason::Retry, PassReason::Initial);
            let foreign = either(
                AnswerReason::RetryForeignToken,
                PassReason::InitialForeignToken,
            );
            let invalid = either(
                AnswerReason::RetryInvalidNewToken,
                PassReason::InitialInvalidNewToken,
            );
            assert_eq!(judge(rig, source, &[]), none);
            for len in [1, 55, 56, 57, 63, 64, 79, 80, 81, 500] {
                assert_eq!(judge(rig, source, &vec![0x5a; len]), foreign, "{len}");
            }
            let good = retry_token(rig, source, now_s());
            assert_eq!(
                judge(rig, source, &good),
                passed(PassReason::InitialRetryToken)
            );
            for bit in 0..8 * good.len() {
                let mut changed = good.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(judge(rig, source, &changed), foreign, "bit {bit}");
            }
            let old = retry_token(rig, source, now_s() - 60);
            assert_eq!(
                judge(rig, source, &old),
                dropped(DropReason::RetryTokenExpired)
            );
            let good = new_token(rig, source, now_s());
            assert_eq!(
                judge(rig, source, &good),
                passed(PassReason::InitialNewToken)
            );
            let of_other = new_token(rig, IpAddr::from([10, 0, 0, 1]), now_s());
            assert_eq!(
                judge(rig, source, &of_other),
                invalid,
                "a device that has moved"
            );
            let old = new_token(rig, source, now_s() - 2 * 86_400);
            assert_eq!(judge(rig, source, &old), invalid);
        }
    }
}

#[test]
fn keys_of_two_epochs_are_good() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = rig(RetryMode::Always, Budgets::UNLIMITED);
    let made_in = |epochs_ago: u64| {
        let keys = rig
            .keys
            .token_keys(u64::from(now_s()) - epochs_ago * 86_400);
        bytes(&keys.new_token(sender(v4()).address, now_s(), [1, 1]))
    };
    let good = Outcome::Passed(PassReason::InitialNewToken);
    assert_eq!(judge(&rig, v4(), &made_in(0)), good);
    assert_eq!(judge(&rig, v4(), &made_in(1)), good);
    assert_eq!(
        judge(&rig, v4(), &made_in(2)),
        Outcome::Answered(AnswerReason::RetryForeignToken)
    );
}

#[test]
fn what_is_in_the_middle_of_a_handshake_goes_on() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = rig(RetryMode::Always, Budgets::UNLIMITED);
    let own = rig.cid(2);
    let packet = Packet::quic(v4(), initial(&own, &[1; 8], &[], 1200));
    assert_eq!(
        rig.judge(&packet.bytes()).0,
        Outcome::Passed(PassReason::OwnCidLong)
    );
    let other_length = Packet::quic(v4(), long(0, 1, &[7; 8], &[1; 21], 1200));
    assert_eq!(
        rig.judge(&other_length.bytes()).0,
        Outcome::Dropped(DropReason::CidLength)
    );
}

#[test]
fn above_a_budget_there_is_a_retry_and_no_lockout() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let budgets = Budgets {
        initials_per_prefix: Limit::new(1, 2),
        retries: Limit::new(1, 5),
        ..Budgets::UNLIMITED
    };
    let auto = rig(RetryMode::Auto, budgets);
    let passed = Outcome::Passed(PassReason::Initial);
    for _ in 0..2 {
        assert_eq!(judge(&auto, v4(), &[]), passed);
    }
    for _ in 0..5 {
        assert_eq!(judge(&auto, v4(), &[]), RETRY);
    }
    assert_eq!(
        judge(&auto, v4(), &[]),
        Outcome::Dropped(DropReason::RetryBudget),
        "what the kernel answers is capped"
    );
    assert_eq!(judge(&auto, v6(), &[]), passed, "another prefix");
    let token = retry_token(&auto, v4(), now_s());
    assert_eq!(
        judge(&auto, v4(), &token),
        Outcome::Passed(PassReason::InitialRetryToken),
        "who has proved its address gets in"
    );
    let zero_rtt = Packet::quic(v4(), long(1, 1, &[5; 8], &[1; 8], 200)).bytes();
    assert_eq!(
        auto.judge(&zero_rtt).0,
        Outcome::Dropped(DropReason::InitialPrefixBudget),
        "0-RTT can't be answered with Retry"
    );

    let never = rig(RetryMode::Never, budgets);
    for _ in 0..2 {
        assert_eq!(judge(&never, v4(), &[]), passed);
    }
    assert_eq!(
        judge(&never, v4(), &[]),
        Outcome::Dropped(DropReason::InitialPrefixBudget)
    );
}

#[test]
fn a_token_that_is_repeated_has_a_budget_of_its_host() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = rig(
        RetryMode::Always,
        Budgets {
            validated_initials_per_address: Limit::new(1, 3),
            ..Budgets::UNLIMITED
        },
    );
    let good = Outcome::Passed(PassReason::InitialRetryToken);
    for source in [v4(), v6()] {
        let token = retry_token(&rig, source, now_s());
        for _ in 0..3 {
            assert_eq!(judge(&rig, source, &token), good);
        }
        assert_eq!(
            judge(&rig, source, &token),
            Outcome::Dropped(DropReason::ValidatedAddressBudget)
        );
    }
    let neighbour = IpAddr::from([198, 51, 100, 8]);
    let token = retry_token(&rig, neighbour, now_s());
    assert_eq!(judge(&rig, neighbour, &token), good, "of the same /24");
}

#[test]
fn validated_sources_have_a_budget_apart_from_all_others() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = rig(
        RetryMode::Never,
        Budgets {
            initials: Limit::new(1, 1),
            validated_initials: Limit::new(1, 2),
            ..Budgets::UNLIMITED
        },
    );
    assert_eq!(judge(&rig, v4(), &[]), Outcome::Passed(PassReason::Initial));
    for _ in 0..50 {
        assert_eq!(
            judge(&rig, v4(), &[]),
            Outcome::Dropped(DropReason::InitialGlobalBudget)
        );
    }
    let token = new_token(&rig, v6(), now_s());
    for _ in 0..2 {
        assert_eq!(
            judge(&rig, v6(), &token),
            Outcome::Passed(PassReason::InitialNewToken)
        );
    }
    assert_eq!(
        judge(&rig, v6(), &token),
        Outcome::Dropped(DropReason::ValidatedBudget)
    );
}

#[test]
fn load_turns_retry_on_and_its_end_turns_it_off() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = rig(RetryMode::Auto, Budgets::UNLIMITED);
    let retry = RetrySettings {
        mode: RetryMode::Auto,
        above_per_second: 50,
        below_per_second: 20,
        token_life_s: 15,
    };
    rig.shield().set_retry(retry).expect("it can be changed");
    assert_eq!(rig.shield().retry().expect("it can be read"), retry);
    let passed = Outcome::Passed(PassReason::Initial);
    assert_eq!(judge(&rig, v4(), &[]), passed, "no load yet");
    let deadline = Instant::now() + Duration::from_secs(20);
    while judge(&rig, v4(), &[]) == passed {
        assert!(Instant::now() < deadline, "load is noticed");
    }
    assert_eq!(judge(&rig, v6(), &[]), RETRY, "for everybody");
    // About 3 Initials a second are below the lower threshold.
    let deadline = Instant::now() + Duration::from_secs(60);
    while judge(&rig, v4(), &[]) == RETRY {
        assert!(Instant::now() < deadline, "the end of the load is noticed");
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn an_operator_changes_the_mode_while_it_runs() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = rig(RetryMode::Never, Budgets::UNLIMITED);
    assert_eq!(judge(&rig, v4(), &[]), Outcome::Passed(PassReason::Initial));
    let mode = |mode| RetrySettings {
        mode,
        ..RetrySettings::default()
    };
    rig.shield()
        .set_retry(mode(RetryMode::Always))
        .expect("it can be changed");
    assert_eq!(judge(&rig, v4(), &[]), RETRY);
    let budgets = Budgets {
        retries: Limit::new(1, 1),
        ..rig.shield().budgets().expect("they can be read")
    };
    rig.shield()
        .set_budgets(budgets)
        .expect("they can be changed");
    assert_eq!(judge(&rig, v4(), &[]), RETRY);
    assert_eq!(
        judge(&rig, v4(), &[]),
        Outcome::Dropped(DropReason::RetryBudget)
    );
}
