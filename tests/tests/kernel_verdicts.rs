//! What the XDP program does with a packet: packet in → verdict and packet out, by BPF_PROG_TEST_RUN.

use std::net::IpAddr;

use headgate_common::records::{Budgets, Limit};
use headgate_common::{AnswerReason, CidKeys, DropReason, PassReason};
use headgate_tests::packets::{Packet, Transport, check_turned, initial, long, short};
use headgate_tests::rig::{EPOCH, NODE, Outcome, Rig, why_not};
use headgate_tests::skip;

const SYN: u8 = 2;
const ACK: u8 = 16;

fn v4() -> IpAddr {
    IpAddr::from([198, 51, 100, 7])
}

fn v6() -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0xa, 0xb, 1, 2, 3, 4])
}

fn dropped(reason: DropReason) -> Outcome {
    Outcome::Dropped(reason)
}

fn passed(reason: PassReason) -> Outcome {
    Outcome::Passed(reason)
}

/// The same datagram over IPv4 and IPv6, each with and without a VLAN tag, must come to the same.
fn everywhere(rig: &Rig, payload: &[u8], expected: Outcome) {
    for source in [v4(), v6()] {
        for packet in [
            Packet::quic(source, payload.to_vec()),
            Packet::quic(source, payload.to_vec()).tagged(5),
        ] {
            let bytes = packet.bytes();
            let (outcome, out) = rig.judge(&bytes);
            assert_eq!(outcome, expected, "{packet:?}");
            if !matches!(expected, Outcome::Answered(_)) {
                assert_eq!(out, bytes, "a packet that isn't answered is not changed");
            }
        }
    }
}

#[test]
fn connection_ids_decide_about_short_headers() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    everywhere(&rig, &short(&rig.cid(2), 60), passed(PassReason::OwnCid));
    let former = rig.keys.cid_keys(EPOCH - 1).encode(NODE, 2, [1; 6]);
    assert_ne!(former[0], rig.cid(2)[0], "another rotation");
    everywhere(&rig, &short(&former, 60), passed(PassReason::OwnCid));
    let retired = rig.keys.cid_keys(EPOCH - 2).encode(NODE, 2, [1; 6]);
    everywhere(&rig, &short(&retired, 60), dropped(DropReason::ForgedCid));
    let foreign_key = CidKeys::new(
        rig.cids().current(),
        headgate_common::SipKey { k0: 1, k1: 2 },
    );
    everywhere(
        &rig,
        &short(&foreign_key.encode(NODE, 2, [1; 6]), 60),
        dropped(DropReason::ForgedCid),
    );
    for bit in 0..112 {
        let mut forged = rig.cid(2);
        forged[bit / 8] ^= 1 << (bit % 8);
        let packet = Packet::quic(v4(), short(&forged, 60)).bytes();
        assert_eq!(
            rig.judge(&packet).0,
            dropped(DropReason::ForgedCid),
            "bit {bit}"
        );
    }
    everywhere(
        &rig,
        &short(&rig.cids().encode(NODE + 1, 2, [1; 6]), 60),
        dropped(DropReason::OtherNode),
    );
    everywhere(
        &rig,
        &short(&rig.cid(200), 60),
        passed(PassReason::OwnCidOrphan),
    );
    let greased: Vec<u8> = short(&rig.cid(2), 60)
        .into_iter()
        .enumerate()
        .map(|(i, b)| if i == 0 { 0x7f } else { b })
        .collect();
    everywhere(&rig, &greased, passed(PassReason::OwnCid));
}

#[test]
fn long_headers_are_told_apart() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    let own = rig.cid(1);
    let scid = [3; 8];
    for dcid_len in 8..=20 {
        everywhere(
            &rig,
            &initial(&vec![7; dcid_len], &scid, &[], 1200),
            passed(PassReason::Initial),
        );
        everywhere(
            &rig,
            &long(1, 1, &vec![7; dcid_len], &scid, 100),
            passed(PassReason::ZeroRtt),
        );
    }
    for dcid_len in [0, 1, 7, 21, 100, 255] {
        everywhere(
            &rig,
            &long(0, 1, &vec![7; dcid_len], &scid, 1200),
            dropped(DropReason::CidLength),
        );
    }
    everywhere(
        &rig,
        &long(0, 1, &[7; 8], &scid, 1199),
        dropped(DropReason::InitialTooShort),
    );
    everywhere(
        &rig,
        &long(0, 1, &own, &scid, 1200),
        passed(PassReason::OwnCidLong),
    );
    everywhere(
        &rig,
        &long(1, 1, &own, &scid, 100),
        passed(PassReason::OwnCidLong),
    );
    everywhere(
        &rig,
        &long(2, 1, &own, &scid, 100),
        passed(PassReason::OwnCidLong),
    );
    everywhere(
        &rig,
        &long(2, 1, &[7; 14], &scid, 100),
        dropped(DropReason::HandshakeForeignCid),
    );
    everywhere(
        &rig,
        &long(2, 1, &[7; 8], &scid, 100),
        dropped(DropReason::HandshakeForeignCid),
    );
    everywhere(
        &rig,
        &long(3, 1, &own, &scid, 100),
        dropped(DropReason::RetryFromClient),
    );
    everywhere(
        &rig,
        &long(0, 0, &own, &scid, 1200),
        dropped(DropReason::VersionZero),
    );
    everywhere(
        &rig,
        &long(0, 2, &own, &scid, 1199),
        dropped(DropReason::UnknownVersionShort),
    );
    everywhere(
        &rig,
        &long(0, 2, &[7; 21], &scid, 1200),
        dropped(DropReason::CidLength),
    );
    everywhere(
        &rig,
        &long(0, 2, &[7; 20], &[1; 21], 1200),
        dropped(DropReason::CidLength),
    );
    everywhere(
        &rig,
        &long(0, 1, &rig.cids().encode(NODE + 1, 1, [0; 6]), &scid, 1200),
        dropped(DropReason::OtherNode),
    );
}

#[test]
fn lengths_that_lie_are_dropped() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    for payload_len in 0..32 {
        everywhere(&rig, &vec![0x40; payload_len], dropped(DropReason::Runt));
    }
    for error in [1, 1000, -68, -62] {
        let mut packet = Packet::quic(v4(), short(&rig.cid(1), 60));
        if let Transport::Udp { length_error, .. } = &mut packet.transport {
            *length_error = error;
        }
        assert_eq!(
            rig.judge(&packet.bytes()).0,
            dropped(DropReason::MalformedHeader),
            "{error}"
        );
    }
    // A datagram that claims 1,200 bytes must have them, or a small packet would get a bigger answer.
    let mut packet = Packet::quic(v4(), long(0, 99, &[1; 8], &[1; 8], 60));
    if let Transport::Udp { length_error, .. } = &mut packet.transport {
        *length_error = 1140;
    }
    assert_eq!(
        rig.judge(&packet.bytes()).0,
        dropped(DropReason::MalformedHeader)
    );
}

#[test]
fn what_is_not_for_us_is_left_alone_and_not_counted() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    let mut other_port = Packet::quic(v4(), short(&[0; 14], 60));
    if let Transport::Udp { to, .. } = &mut other_port.transport {
        *to = 53;
    }
    let mut icmp = Packet::quic(v4(), vec![0; 40]).bytes();
    icmp[14 + 9] = 1;
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut multicast_report = Packet {
        options: true,
        ..Packet::quic(v6(), vec![0; 40])
    }
    .bytes();
    multicast_report[14 + 40] = 58;
    let ssh = Packet::tcp(v4(), 22, SYN).bytes();
    for bytes in [other_port.bytes(), icmp, arp, multicast_report, ssh] {
        assert_eq!(rig.judge(&bytes), (Outcome::Ignored, bytes));
    }
    assert_eq!(rig.counters().judged(), 0);
}

#[test]
fn truncated_packets_are_never_steered() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    for source in [v4(), v6()] {
        let whole = Packet::quic(source, short(&rig.cid(1), 40))
            .tagged(7)
            .bytes();
        for len in 14..whole.len() {
            let (outcome, _) = rig.judge(&whole[..len]);
            assert!(
                matches!(
                    outcome,
                    Outcome::Ignored | Outcome::Dropped(DropReason::MalformedHeader)
                ),
                "{len}"
            );
        }
    }
}

#[test]
fn fragments_and_options_have_one_budget_of_their_own() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::with_budgets(Budgets {
        fragments: Limit::new(1, 5),
        ..Budgets::UNLIMITED
    });
    let payload = short(&rig.cid(1), 60);
    let odd = [
        Packet {
            fragment: 0x2000,
            ..Packet::quic(v4(), payload.clone())
        },
        Packet {
            fragment: 0x0007,
            ..Packet::quic(v4(), payload.clone())
        },
        Packet {
            options: true,
            ..Packet::quic(v4(), payload.clone())
        },
        Packet {
            fragment: 0x0001,
            ..Packet::quic(v6(), payload.clone())
        }
        .tagged(3),
        Packet {
            options: true,
            ..Packet::quic(v6(), payload.clone())
        },
    ];
    for packet in &odd {
        assert_eq!(
            rig.judge(&packet.bytes()).0,
            passed(PassReason::Fragment),
            "{packet:?}"
        );
    }
    for packet in &odd {
        assert_eq!(
            rig.judge(&packet.bytes()).0,
            dropped(DropReason::FragmentBudget),
            "{packet:?}"
        );
    }
    everywhere(&rig, &payload, passed(PassReason::OwnCid));
    let do_not_fragment = Packet {
        fragment: 0x4000,
        ..Packet::quic(v4(), payload)
    };
    assert_eq!(
        rig.judge(&do_not_fragment.bytes()).0,
        passed(PassReason::OwnCid),
        "DF is no fragment"
    );
}

#[test]
fn a_version_negotiation_answer_is_right_to_the_last_byte() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    for (dcid_len, scid_len) in
        (0..=20).flat_map(|dcid_len| [0, 1, 8, 19, 20].map(|scid_len| (dcid_len, scid_len)))
    {
        let dcid: Vec<u8> = (0..dcid_len).map(|i| 0x80 + i).collect();
        let scid: Vec<u8> = (0..scid_len).map(|i| 0x10 + i).collect();
        for source in [v4(), v6()] {
            for packet in [
                Packet::quic(source, long(0, 0xface_b00c, &dcid, &scid, 1200)),
                Packet::quic(source, long(0, 0xface_b00c, &dcid, &scid, 1201)).tagged(9),
            ] {
                let request = packet.bytes();
                let (outcome, answer) = rig.judge(&request);
                assert_eq!(outcome, Outcome::Answered(AnswerReason::VersionNegotiation));
                check_version_negotiation(&packet, &request, &answer, &dcid, &scid);
            }
        }
    }
}

fn check_version_negotiation(
    packet: &Packet,
    request: &[u8],
    answer: &[u8],
    dcid: &[u8],
    scid: &[u8],
) {
    let payload = check_turned(packet, request, answer);
    // RFC 9000 §17.2.1.
    assert_eq!(payload[0] & 0x80, 0x80, "a long header");
    let mut expected = vec![0, 0, 0, 0, scid.len() as u8];
    expected.extend(scid);
    expected.push(dcid.len() as u8);
    expected.extend(dcid);
    expected.extend([0, 0, 0, 1]);
    assert_eq!(payload[1..=expected.len()], expected[..]);
    let grease = &payload[1 + expected.len()..];
    assert_eq!(grease.len(), 4);
    assert!(
        grease.iter().all(|byte| byte & 0xf == 0xa),
        "RFC 9000 §15: reserved for greasing: {grease:x?}"
    );
}

#[test]
fn version_negotiation_has_a_cap() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::with_budgets(Budgets {
        version_negotiations: Limit::new(1, 3),
        ..Budgets::UNLIMITED
    });
    let packet = Packet::quic(v6(), long(0, 7, &[1; 8], &[2; 8], 1200)).bytes();
    for _ in 0..3 {
        assert_eq!(
            rig.judge(&packet).0,
            Outcome::Answered(AnswerReason::VersionNegotiation)
        );
    }
    assert_eq!(
        rig.judge(&packet).0,
        dropped(DropReason::VersionNegotiationBudget)
    );
}

#[test]
fn tcp_to_our_ports_is_counted_and_syns_have_a_budget() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::with_budgets(Budgets {
        syns_per_prefix: Limit::new(1, 2),
        ..Budgets::UNLIMITED
    });
    for source in [v4(), v6()] {
        let syn = Packet::tcp(source, 1883, SYN).bytes();
        assert_eq!(rig.judge(&syn).0, passed(PassReason::TcpSyn));
        assert_eq!(
            rig.judge(&Packet::tcp(source, 8883, SYN).tagged(3).bytes())
                .0,
            passed(PassReason::TcpSyn)
        );
        assert_eq!(rig.judge(&syn).0, dropped(DropReason::SynPrefixBudget));
        assert_eq!(
            rig.judge(&Packet::tcp(source, 1883, ACK).bytes()).0,
            passed(PassReason::Tcp)
        );
        assert_eq!(
            rig.judge(&Packet::tcp(source, 1883, SYN | ACK).bytes()).0,
            passed(PassReason::Tcp)
        );
    }
}

#[test]
fn without_a_worker_nothing_is_let_through() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    for slot in 0..4 {
        rig.shield()
            .remove_worker(slot)
            .expect("the worker is removed");
    }
    everywhere(&rig, &short(&rig.cid(2), 60), dropped(DropReason::NoWorker));
    everywhere(
        &rig,
        &long(0, 1, &[7; 8], &[1; 8], 1200),
        dropped(DropReason::NoWorker),
    );
    everywhere(&rig, &short(&[2; 14], 60), dropped(DropReason::ForgedCid));
}
