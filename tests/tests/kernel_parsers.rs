//! The kernel's parsers and its routing, on the host: packets that are built and read back, arbitrary bytes, and the
//! corpora of the fuzz targets.

use std::net::IpAddr;
use std::path::Path;

use headgate_common::frame::{Frame, Source, parse};
use headgate_common::route::{NO_SLOT, SPREAD};
use headgate_common::{CidKeys, Form, Route, Router, Secrets, SipKey, Steering};
use headgate_tests::packets::{Packet, Transport, long};
use proptest::collection::{hash_set, vec};
use proptest::prelude::*;

#[path = "../fuzz/checks/common_frame.rs"]
mod frame_check;
#[path = "../fuzz/checks/common_route.rs"]
mod route_check;
#[path = "../fuzz/checks/common_token.rs"]
mod token_check;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

fn source(address: IpAddr) -> Source {
    match address {
        IpAddr::V4(address) => Source::V4(u32::from_le_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = u128::from_le_bytes(address.octets());
            Source::V6([octets as u64, (octets >> 64) as u64])
        }
    }
}

proptest! {
    #[test]
    fn a_datagram_is_read_back_as_it_was_built(
        address in address(), vlan: Option<u16>, to: u16, payload in vec(any::<u8>(), 0..100), padding in 0..30usize,
    ) {
        let transport = Transport::Udp { from: 1, to, payload: payload.clone(), length_error: 0 };
        let packet = Packet { vlan, transport, ..Packet::quic(address, Vec::new()) };
        let mut bytes = packet.bytes();
        let end = bytes.len() as u32;
        bytes.resize(bytes.len() + padding, 0);
        let Frame::Udp(udp) = parse(&bytes.as_slice()) else { return Err(TestCaseError::fail("not UDP")) };
        prop_assert_eq!((udp.source, udp.port, udp.end), (source(address), to, end));
        prop_assert_eq!(udp.payload_len(&bytes.as_slice()), Some(payload.len() as u32));
        prop_assert_eq!(&bytes[udp.payload..udp.payload + payload.len()], &payload[..]);
    }

    #[test]
    fn a_segment_is_read_back_as_it_was_built(address in address(), vlan: Option<u16>, to: u16, flags: u8) {
        let packet = Packet { vlan, ..Packet::tcp(address, to, flags) };
        let Frame::Tcp(tcp) = parse(&packet.bytes().as_slice()) else { return Err(TestCaseError::fail("not TCP")) };
        prop_assert_eq!((tcp.source, tcp.port, tcp.opens), (source(address), to, flags & 0x12 == 2));
    }

    #[test]
    fn fragments_and_options_are_noticed(
        address in address(), vlan: Option<u16>, fragment in 1..0x2000u16, options: bool,
    ) {
        let packet = Packet { vlan, fragment, options, ..Packet::quic(address, vec![0; 40]) };
        let found = parse(&packet.bytes().as_slice());
        prop_assert!(matches!(found, Frame::Fragment { source: from, .. } if from == source(address)), "{:?}", found);
    }

    #[test]
    fn arbitrary_packets_are_parsed_as_the_reference_does(
        start in prop_oneof![Just(vec![8, 0, 0x45]), Just(vec![0x86, 0xdd, 0x60]), Just(vec![0x81, 0]), Just(vec![])],
        rest in vec(any::<u8>(), 0..120),
    ) {
        frame_check::check(&[&[0; 12], &start[..], &rest].concat());
        frame_check::check(&rest);
    }

    #[test]
    fn arbitrary_datagrams_are_routed_as_the_reference_does(
        choice: u8, first: u8, version in prop_oneof![Just(1u32), Just(0), any::<u32>()],
        rest in vec(any::<u8>(), 0..80), len in prop_oneof![0..80usize, Just(1199), Just(1200), Just(1400)],
    ) {
        let mut datagram = [&[choice, first][..], &version.to_be_bytes(), &rest].concat();
        datagram.resize(len + 1, 0);
        route_check::check(&datagram);
    }

    #[test]
    fn new_connections_are_spread_evenly_and_stay_when_others_leave(
        slots in hash_set(0..NO_SLOT, 1..40), gone in any::<prop::sample::Index>(),
    ) {
        let slots: Vec<u8> = slots.into_iter().collect();
        let before = Steering::with_slots(1, &slots, &[]);
        let share_max = SPREAD.div_ceil(slots.len());
        for slot in &slots {
            let share = before.spread.iter().filter(|chosen| *chosen == slot).count();
            prop_assert!(share <= share_max && before.is_live(*slot));
        }
        prop_assert!(before.spread.iter().all(|slot| slots.contains(slot)));
        let gone = slots[gone.index(slots.len())];
        let left: Vec<u8> = slots.iter().copied().filter(|slot| *slot != gone).collect();
        let after = Steering::with_slots(1, &left, &[gone]);
        prop_assert!(after.is_live(gone), "a draining worker keeps its connections");
        prop_assert!(!after.spread.contains(&gone), "and gets no new ones");
        let moved = before.spread.iter().zip(&after.spread).filter(|(a, b)| a != b && **a != gone).count();
        prop_assert!(moved <= SPREAD / 4, "{moved} entries of workers that stay have moved");
    }
}

#[test]
fn a_clients_first_packets_go_to_one_worker_and_clients_to_all() {
    let key = |n| SipKey { k0: n, k1: n };
    let secrets = Secrets {
        cid: CidKeys::new(0, key(1)),
        initial: key(2),
        prefix: key(3),
    };
    let router = Router {
        secrets,
        steering: Steering::with_slots(1, &[0, 1, 2, 3], &[]),
    };
    let mut clients = [0; 4];
    for client in 0..4_000u64 {
        let dcid = (client.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes();
        let Route::New {
            slot,
            form: Form::Initial,
        } = router.route(&long(0, 1, &dcid, &[1; 8], 1200))
        else {
            panic!("an Initial is new");
        };
        let zero_rtt = router.route(&long(1, 1, &dcid, &[2; 5], 300));
        assert_eq!(
            zero_rtt,
            Route::New {
                slot,
                form: Form::ZeroRtt
            },
            "0-RTT follows its Initial"
        );
        clients[usize::from(slot)] += 1;
    }
    assert!(
        clients.iter().all(|count| (700..1_300).contains(count)),
        "{clients:?}"
    );
}

/// Every input that a fuzzer has kept.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs = 0;
    for entry in entries {
        check(&std::fs::read(entry.expect("listed").path()).expect("readable"));
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", folder.display());
}

#[test]
fn the_corpora_are_replayed() {
    replay("common_frame", frame_check::check);
    replay("common_route", route_check::check);
    replay("common_token", token_check::check);
}
