//! Budgets and lists of the XDP program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use headgate::kernel::{PenaltyOrder, Prefix};
use headgate_common::quota::PenaltyReason;
use headgate_common::records::{Budgets, Limit, ListAction, ListReason};
use headgate_common::talkers::TALKER_SAMPLE;
use headgate_common::{DropReason, PassReason};
use headgate_tests::packets::{Packet, initial as initial_datagram, long, short};
use headgate_tests::rig::{Outcome, Rig, why_not};
use headgate_tests::skip;

fn initial(source: impl Into<IpAddr>, id: u8) -> Vec<u8> {
    Packet::quic(
        source.into(),
        initial_datagram(&[id; 8], &[1; 8], &[], 1200),
    )
    .bytes()
}

fn v4(third: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, third, last)
}

fn v6(fourth: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 7, fourth, 1, 2, 3, last)
}

const INITIAL: Outcome = Outcome::Passed(PassReason::Initial);

#[test]
fn a_prefix_has_a_budget_for_initials() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::with_budgets(Budgets {
        initials_per_prefix: Limit::new(1, 3),
        ..Budgets::UNLIMITED
    });
    let over = Outcome::Dropped(DropReason::InitialPrefixBudget);
    for id in 0..3 {
        assert_eq!(rig.judge(&initial(v4(1, id), id)).0, INITIAL);
        assert_eq!(rig.judge(&initial(v6(1, id.into()), id)).0, INITIAL);
    }
    assert_eq!(rig.judge(&initial(v4(1, 200), 9)).0, over, "the same /24");
    assert_eq!(rig.judge(&initial(v6(1, 200), 9)).0, over, "the same /64");
    assert_eq!(rig.judge(&initial(v4(2, 1), 9)).0, INITIAL, "another /24");
    assert_eq!(rig.judge(&initial(v6(2, 1), 9)).0, INITIAL, "another /64");
    let zero_rtt = Packet::quic(v4(1, 1).into(), long(1, 1, &[5; 8], &[1; 8], 200)).bytes();
    assert_eq!(rig.judge(&zero_rtt).0, over, "0-RTT shares the budget");
    let own = Packet::quic(v4(1, 1).into(), short(&rig.cid(1), 60)).bytes();
    assert_eq!(
        rig.judge(&own).0,
        Outcome::Passed(PassReason::OwnCid),
        "a connection that is there goes on"
    );
}

/// Each CPU looks at one packet in 32, so a few of them are between what is shown and what was sent.
#[test]
fn who_sends_the_most_is_known_among_random_sources() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::with_budgets(Budgets {
        initials_per_prefix: Limit::new(1, 100),
        ..Budgets::UNLIMITED
    });
    let cpus = std::thread::available_parallelism().map_or(256, usize::from) as u64;
    for number in 0..3_200_u32 {
        let id = number as u8;
        let _judged = rig.judge(&initial(v4(7, id), id));
        let _judged = rig.judge(&initial(Ipv4Addr::from(0x0b00_0000 + (number << 8)), id));
    }
    for number in 0..1_600 {
        let _judged = rig.judge(&initial(v6(9, number), number as u8));
    }
    let top = rig.shield().top_talkers(2).expect("it is read");
    let about = |found: u64, sent: u64| found.abs_diff(sent) <= sent / 5 + TALKER_SAMPLE * cpus;
    assert_eq!(top[0].network, IpAddr::from(v4(7, 0)), "{top:?}");
    assert!(
        about(top[0].packets, 3_200) && about(top[0].drops, 3_100),
        "{top:?}"
    );
    assert_eq!(top[1].network.to_string(), "2001:db8:7:9::", "{top:?}");
    assert!(about(top[1].packets, 1_600), "{top:?}");
}

#[test]
fn all_sources_together_have_a_budget_for_initials() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let budgets = Budgets {
        initials: Limit::new(1, 4),
        initials_per_prefix: Limit::new(1, 2),
        ..Budgets::UNLIMITED
    };
    let rig = Rig::with_budgets(budgets);
    for _ in 0..2 {
        assert_eq!(rig.judge(&initial(v4(1, 1), 1)).0, INITIAL);
    }
    for _ in 0..100 {
        let outcome = rig.judge(&initial(v4(1, 1), 1)).0;
        assert_eq!(
            outcome,
            Outcome::Dropped(DropReason::InitialPrefixBudget),
            "one prefix doesn't use up the rest"
        );
    }
    assert_eq!(rig.judge(&initial(v4(2, 1), 1)).0, INITIAL);
    assert_eq!(rig.judge(&initial(v6(3, 1), 1)).0, INITIAL);
    assert_eq!(
        rig.judge(&initial(v4(4, 1), 1)).0,
        Outcome::Dropped(DropReason::InitialGlobalBudget)
    );
}

#[test]
fn a_prefix_has_a_budget_for_packets() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::with_budgets(Budgets {
        packets_per_prefix: Limit::new(1, 3),
        ..Budgets::UNLIMITED
    });
    let own = |last| Packet::quic(v4(9, last).into(), short(&rig.cid(1), 60)).bytes();
    for last in 0..3 {
        assert_eq!(rig.judge(&own(last)).0, Outcome::Passed(PassReason::OwnCid));
    }
    assert_eq!(
        rig.judge(&own(7)).0,
        Outcome::Dropped(DropReason::PacketPrefixBudget)
    );
    assert_eq!(
        rig.judge(&initial(v4(9, 7), 1)).0,
        INITIAL,
        "Initials have a budget of their own"
    );
    let forged = Packet::quic(v4(8, 1).into(), short(&[0; 14], 60)).bytes();
    for _ in 0..20 {
        assert_eq!(
            rig.judge(&forged).0,
            Outcome::Dropped(DropReason::ForgedCid)
        );
    }
    let own = Packet::quic(v4(8, 2).into(), short(&rig.cid(1), 60)).bytes();
    assert_eq!(
        rig.judge(&own).0,
        Outcome::Passed(PassReason::OwnCid),
        "forged packets don't use up the budget"
    );
}

/// Edits a list with bpftool, as an operator does.
fn list(rig: &Rig, action: u8, prefix: IpAddr, len: u8) {
    let (name, octets) = match prefix {
        IpAddr::V4(address) => ("prefixes4", address.octets().to_vec()),
        IpAddr::V6(address) => ("prefixes6", address.octets().to_vec()),
    };
    let mut command = Command::new("bpftool");
    command
        .args(["map", "update", "pinned"])
        .arg(rig.settings.pin_dir.join(name))
        .arg("key");
    command.args([len, 0, 0, 0].map(|byte| byte.to_string()));
    command.args(octets.iter().map(u8::to_string)).arg("value");
    command.args([action, 0, 0, 0].map(|byte| byte.to_string()));
    command.args(["0"; 8]);
    let output = command.output().expect("bpftool runs");
    assert!(output.status.success(), "{output:?}");
}

fn has_bpftool() -> bool {
    Command::new("bpftool")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
}

const DENY: u8 = 1;
const ALLOW: u8 = 2;

#[test]
fn the_longest_listed_prefix_decides() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    if !has_bpftool() {
        skip!("bpftool is missing");
    }
    let rig = Rig::with_budgets(Budgets {
        initials_per_prefix: Limit::new(1, 1),
        ..Budgets::UNLIMITED
    });
    list(&rig, DENY, v4(0, 0).into(), 16);
    list(&rig, ALLOW, v4(5, 0).into(), 24);
    list(&rig, DENY, v4(5, 66).into(), 32);
    list(&rig, DENY, v6(0, 0).into(), 48);
    list(&rig, ALLOW, v6(5, 0).into(), 64);
    list(&rig, 77, Ipv4Addr::new(203, 0, 113, 0).into(), 24);
    let denied = Outcome::Dropped(DropReason::Denied);
    for _ in 0..10 {
        assert_eq!(
            rig.judge(&initial(v4(5, 1), 1)).0,
            INITIAL,
            "no budget by source for who is allowed"
        );
        assert_eq!(rig.judge(&initial(v6(5, 1), 1)).0, INITIAL);
    }
    for source in [IpAddr::from(v4(5, 66)), v4(6, 1).into(), v6(6, 1).into()] {
        assert_eq!(rig.judge(&initial(source, 1)).0, denied, "{source}");
        assert_eq!(
            rig.judge(&Packet::tcp(source, 1883, 16).bytes()).0,
            denied,
            "{source}"
        );
        let own = Packet::quic(source, short(&rig.cid(1), 60));
        assert_eq!(rig.judge(&own.bytes()).0, denied, "{source}");
        let fragment = Packet { fragment: 1, ..own };
        assert_eq!(rig.judge(&fragment.bytes()).0, denied, "{source}");
    }
    let unlisted = Ipv4Addr::new(203, 0, 113, 9);
    assert_eq!(
        rig.judge(&initial(unlisted, 1)).0,
        INITIAL,
        "an unknown action is ignored"
    );
    assert_eq!(
        rig.judge(&initial(unlisted, 1)).0,
        Outcome::Dropped(DropReason::InitialPrefixBudget)
    );
}

#[test]
fn somebody_with_bpftool_can_read_the_maps() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    if !has_bpftool() {
        skip!("bpftool is missing");
    }
    let rig = Rig::new();
    let forged = Packet::quic(v4(8, 1).into(), short(&[0; 14], 60)).bytes();
    for _ in 0..3 {
        assert_eq!(
            rig.judge(&forged).0,
            Outcome::Dropped(DropReason::ForgedCid)
        );
    }
    let prefix = Prefix::new(v4(0, 0).into(), 16).expect("a prefix");
    let lasts = Some(Duration::from_secs(600));
    rig.shield()
        .list(prefix, ListAction::Deny, ListReason::Operator, lasts)
        .expect("there is room");
    let order = PenaltyOrder {
        class: 0,
        reason: PenaltyReason::Quota,
        own_address: None,
        lasts: Duration::from_secs(600),
    };
    rig.shield()
        .penalize(&[rig.cid(1)], order)
        .expect("there is room");
    let dump = |name: &str| {
        let path = rig.settings.pin_dir.join(name);
        let output = Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(path)
            .output()
            .expect("bpftool runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let drops = dump("drops");
    for reason in DropReason::ALL {
        assert!(
            drops.contains(&format!("\"{}\"", reason.name())),
            "{reason:?} in {drops}"
        );
    }
    assert!(drops.contains("\"packets\": 3"), "{drops}");
    for (name, words) in [
        ("passes", vec!["own_cid", "redirected"]),
        ("answers", vec!["version_negotiation"]),
        ("sockets", vec!["no_socket"]),
        ("config", vec!["layout_version", "quic_port", "14567"]),
        ("budgets", vec!["initials_per_prefix", "burst_ns"]),
        ("workers", vec!["generation", "Active", "Free"]),
        ("prefixes4", vec!["Deny", "Operator", "expires_s"]),
        (
            "quotas",
            vec!["\"name\"", "\"messages_per_second\"", "\"memory_bytes\""],
        ),
        ("penalties", vec!["bucket", "expires_s", "Quota"]),
        ("steering", vec!["spread", "live"]),
        ("talkers", vec!["\"prefix\"", "\"votes\"", "\"drops\""]),
    ] {
        let text = dump(name);
        for word in words {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
    let names: Vec<_> = std::fs::read_dir(&rig.settings.pin_dir)
        .expect("there")
        .flatten()
        .collect();
    assert!(
        names.iter().all(|entry| entry.file_name() != "secrets"),
        "keys are not pinned"
    );
}
