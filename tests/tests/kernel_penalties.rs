//! Connection IDs that are policed, classes of quotas, and lists whose entries expire.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use headgate::kernel::{PenaltyOrder, Prefix};
use headgate_common::cid::RawCid;
use headgate_common::quota::{CLASS_DEFAULT, CLASS_SUSPECT, PenaltyReason, QuotaClass, cell_index};
use headgate_common::records::{ListAction, ListReason};
use headgate_common::{DropReason, PassReason};
use headgate_tests::packets::{Packet, long, short};
use headgate_tests::rig::{NODE, Outcome, Rig, why_not};
use headgate_tests::skip;

const PASSED: Outcome = Outcome::Passed(PassReason::OwnCid);
const POLICED: Outcome = Outcome::Dropped(DropReason::Penalty);
/// One packet per 1,000 s: of a policed connection one packet passes, from elsewhere none ever again.
const SLOW: QuotaClass = QuotaClass {
    packets_per_second: 1,
    ..QuotaClass::NONE
};

fn client() -> IpAddr {
    IpAddr::from([198, 51, 100, 7])
}

fn cid(rig: &Rig, number: u8) -> [u8; 14] {
    rig.cids().encode(NODE, 1, [number; 6])
}

fn judge(rig: &Rig, source: IpAddr, cid: &[u8; 14]) -> Outcome {
    rig.judge(&Packet::quic(source, short(cid, 60)).bytes()).0
}

fn order(class: u32, own_address: Option<IpAddr>) -> PenaltyOrder {
    PenaltyOrder {
        class,
        reason: PenaltyReason::Quota,
        own_address,
        lasts: Duration::from_secs(600),
    }
}

/// How many of 40 packets pass at once.
fn passed(rig: &Rig, source: IpAddr, cid: &[u8; 14]) -> usize {
    (0..40)
        .filter(|_| judge(rig, source, cid) == PASSED)
        .count()
}

#[test]
fn all_connection_ids_of_a_connection_share_one_bucket() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    let shield = rig.shield();
    let class = QuotaClass {
        name: QuotaClass::named("slow").name,
        ..SLOW
    };
    shield.set_quota(7, class).expect("there is room");
    let [first, second, later, other] = [1, 2, 3, 4].map(|number| cid(&rig, number));
    let id = shield
        .penalize(&[first, second], order(7, None))
        .expect("there is room");
    assert_eq!(judge(&rig, client(), &first), PASSED);
    assert_eq!(
        judge(&rig, client(), &second),
        POLICED,
        "the first one used it up"
    );
    assert_eq!(judge(&rig, client(), &later), PASSED, "not known yet");
    assert!(shield.penalize_also(id, later).expect("there is room"));
    assert_eq!(judge(&rig, client(), &later), POLICED);
    assert_eq!(
        judge(&rig, client(), &other),
        PASSED,
        "another connection's"
    );
    let handshake = Packet::quic(client(), long(2, 1, &first, &[1; 8], 100));
    assert_eq!(
        rig.judge(&handshake.bytes()).0,
        POLICED,
        "long headers, too"
    );
    assert_eq!(shield.penalized(), (1, 3));
    shield.pardon(id).expect("it can be removed");
    for cid in [first, second, later] {
        assert_eq!(judge(&rig, client(), &cid), PASSED);
    }
    assert_eq!(shield.penalized(), (0, 0));
    assert!(
        !shield.penalize_also(id, first).expect("asked"),
        "it is over"
    );
}

#[test]
fn whoever_has_seen_a_connection_id_uses_nothing_up_of_its_owner() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    let class = QuotaClass {
        packets_per_second: 40,
        ..QuotaClass::named("suspect")
    };
    rig.shield()
        .set_quota(CLASS_SUSPECT, class)
        .expect("it is there");
    for own in [client(), IpAddr::from([0x2001, 0xdb8, 0, 1, 2, 3, 4, 5])] {
        let cid = cid(&rig, if own.is_ipv4() { 1 } else { 2 });
        rig.shield()
            .penalize(&[cid], order(CLASS_SUSPECT, Some(own)))
            .expect("there is room");
        let elsewhere = IpAddr::from([203, 0, 113, 1]);
        assert!(passed(&rig, elsewhere, &cid) <= 3);
        let own_passed = passed(&rig, own, &cid);
        assert!((10..=25).contains(&own_passed), "{own_passed}");
    }
}

#[test]
fn an_edit_of_a_class_is_in_force_with_the_next_packet() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    let shield = rig.shield();
    let classes = shield.quotas().expect("they can be read");
    let names: Vec<_> = classes.iter().map(|(_, class)| class.name()).collect();
    assert_eq!(names, ["default", "suspect"]);
    let cid = cid(&rig, 1);
    shield
        .penalize(&[cid], order(CLASS_DEFAULT, None))
        .expect("there is room");
    assert_eq!(passed(&rig, client(), &cid), 40, "no rate in this class");
    let class = QuotaClass {
        bytes_per_second: 100,
        ..QuotaClass::named("default")
    };
    shield.set_quota(CLASS_DEFAULT, class).expect("it is there");
    assert!(passed(&rig, client(), &cid) <= 2);
    assert!(shield.set_quota(64, class).is_err(), "there are 64");
}

#[test]
fn a_penalty_ends_by_itself() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    rig.shield().set_quota(9, SLOW).expect("there is room");
    let cid = cid(&rig, 1);
    let short_one = PenaltyOrder {
        lasts: Duration::from_secs(1),
        ..order(9, None)
    };
    rig.shield()
        .penalize(&[cid], short_one)
        .expect("there is room");
    let deadline = Instant::now() + Duration::from_secs(30);
    while passed(&rig, client(), &cid) < 40 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    while rig.shield().penalized() != (0, 0) {
        assert!(Instant::now() < deadline);
        rig.shield().tick().expect("the maps can be changed");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn there_is_always_room_for_one_more_penalty() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    rig.shield().set_quota(9, SLOW).expect("there is room");
    let of = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        rig.cids().encode(NODE, 1, [a, b, c, d, 1, 1])
    };
    for number in 0..5_000 {
        let cids = [of(2 * number), of(2 * number + 1)];
        rig.shield()
            .penalize(&cids, order(9, None))
            .expect("there is room");
    }
    assert_eq!(rig.shield().penalized(), (4_096, 8_192));
    assert!(
        passed(&rig, client(), &of(9_999)) <= 2,
        "the last one is policed"
    );
    assert_eq!(
        passed(&rig, client(), &of(0)),
        40,
        "the first one is not any more"
    );
}

#[test]
fn connection_ids_that_share_a_cell_are_policed_each_by_its_own_penalty() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    rig.shield().set_quota(9, SLOW).expect("there is room");
    let cell = |cid: &[u8; 14]| cell_index(RawCid::from_bytes(cid).mac);
    let all = (0..u32::MAX).map(|number| {
        let [a, b, c, d] = number.to_be_bytes();
        rig.cids().encode(NODE, 1, [a, b, c, d, 1, 1])
    });
    let first = cid(&rig, 1);
    let sharing = all.filter(|other| cell(other) == cell(&first) && *other != first);
    let [second, third, free] = sharing
        .take(3)
        .collect::<Vec<_>>()
        .try_into()
        .expect("there are many");
    let policed = [first, second, third];
    let ids = policed.map(|cid| {
        let order = order(9, Some(client()));
        rig.shield().penalize(&[cid], order).expect("there is room")
    });
    for cid in &policed {
        assert_eq!(passed(&rig, client(), cid), 1, "its own bucket");
    }
    assert_eq!(passed(&rig, client(), &free), 40);
    // Each in turn, so that the cell goes from one to the next.
    for (gone, id) in ids.into_iter().enumerate() {
        rig.shield().pardon(id).expect("it can be removed");
        for (number, cid) in policed.iter().enumerate() {
            let all_pass = passed(&rig, client(), cid) == 40;
            assert_eq!(all_pass, number <= gone, "{number} after {gone}");
        }
    }
}

#[test]
fn what_somebody_changes_in_the_map_is_carried_over() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    rig.shield().set_quota(9, SLOW).expect("there is room");
    let [first, second, edited] = [1, 2, 3].map(|number| cid(&rig, number));
    rig.shield()
        .penalize(&[first, second], order(9, None))
        .expect("there is room");
    rig.shield()
        .penalize(&[edited], order(9, None))
        .expect("there is room");
    assert_eq!(passed(&rig, client(), &first), 1);
    assert_eq!(passed(&rig, client(), &edited), 1);
    let pin = rig.settings.pin_dir.join("penalties");
    let map = MapData::from_pin(pin).expect("it is pinned");
    let mut map =
        HashMap::<_, [u8; 16], [u64; 5]>::try_from(Map::LruHashMap(map)).expect("its type");
    let key = |cid: &[u8; 14]| {
        let mut key = [0; 16];
        key[..14].copy_from_slice(cid);
        key
    };
    map.remove(&key(&second)).expect("it is there");
    let mut words = map.get(&key(&edited), 0).expect("it is there");
    let ordered = words;
    // The class, beside the bucket: one without rates.
    words[3] &= u64::from(u32::MAX);
    map.insert(key(&edited), words, 0).expect("it is there");
    rig.shield().tick().expect("the maps can be changed");
    assert_eq!(rig.shield().penalized(), (1, 1));
    for cid in [first, second, edited] {
        assert_eq!(passed(&rig, client(), &cid), 40);
    }
    assert!(map.get(&key(&first), 0).is_err(), "pardoned with the other");
    map.insert(key(&edited), ordered, 0).expect("it is there");
    rig.shield().tick().expect("the maps can be changed");
    assert!(passed(&rig, client(), &edited) < 40, "taken back");
}

#[test]
fn an_entry_of_the_lists_expires() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    let shield = rig.shield();
    let of = |text: &str| text.parse::<Prefix>().expect("a prefix");
    let denied = Outcome::Dropped(DropReason::Denied);
    let (short_one, long_one) = (of("198.51.100.0/24"), of("203.0.113.0/24"));
    let v6 = of("2001:db8:7::/48");
    shield
        .list(
            short_one,
            ListAction::Deny,
            ListReason::FailedAuthentications,
            Some(Duration::from_secs(1)),
        )
        .expect("there is room");
    shield
        .list(long_one, ListAction::Deny, ListReason::Operator, None)
        .expect("there is room");
    shield
        .list(
            v6,
            ListAction::Allow,
            ListReason::Configuration,
            Some(Duration::from_secs(600)),
        )
        .expect("there is room");
    let cid = rig.cid(1);
    let elsewhere = IpAddr::from(Ipv4Addr::new(203, 0, 113, 5));
    assert_eq!(judge(&rig, elsewhere, &cid), denied);
    let deadline = Instant::now() + Duration::from_secs(30);
    while judge(&rig, client(), &cid) == denied {
        assert!(
            Instant::now() < deadline,
            "it expires without anybody's help"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    while shield.listed().expect("the lists can be read").len() > 2 {
        assert!(Instant::now() < deadline);
        shield.tick().expect("the maps can be changed");
    }
    let mut listed = shield.listed().expect("the lists can be read");
    listed.sort_by_key(|entry| entry.prefix);
    assert_eq!(listed[0].prefix, long_one);
    assert_eq!(
        (listed[0].action, listed[0].reason),
        (Some(ListAction::Deny), ListReason::Operator)
    );
    assert_eq!(listed[0].expires_s, 0);
    assert_eq!(
        (listed[1].prefix, listed[1].action),
        (v6, Some(ListAction::Allow))
    );
    assert_ne!(listed[1].expires_s, 0);
    assert!(shield.unlist(long_one).expect("it can be removed"));
    assert!(!shield.unlist(long_one).expect("asked"), "it is gone");
    assert_eq!(judge(&rig, elsewhere, &cid), PASSED);
}
