use super::*;
use crate::overload::memory::MemoryNow;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const OFF: AdmissionLimits = AdmissionLimits {
    connections: 0,
    connections_per_prefix: 0,
    handshakes_per_second: 0,
};

/// An address of one of a few prefixes, some of them written in two ways.
fn address() -> impl Strategy<Value = IpAddr> {
    (0u8..4, any::<u8>(), any::<bool>()).prop_map(|(net, host, mapped)| {
        let v4 = Ipv4Addr::new(192, 0, net, host);
        match (net, mapped) {
            (3, _) => Ipv6Addr::new(0x2001, 0xdb8, 0, 7, host.into(), 0, 0, 1).into(),
            (_, true) => v4.to_ipv6_mapped().into(),
            (_, false) => v4.into(),
        }
    })
}

#[derive(Clone, Debug)]
enum Step {
    Connect(IpAddr),
    Leave(usize),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => address().prop_map(Step::Connect),
        2 => any::<usize>().prop_map(Step::Leave),
        1 => any::<u16>().prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against a model that keeps the open connections in a list.
    #[test]
    fn connections_and_prefixes_are_counted_exactly(
        connections in 0u32..12,
        connections_per_prefix in 0u32..6,
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let now = Instant::now();
        let limits = AdmissionLimits { connections, connections_per_prefix, handshakes_per_second: 0 };
        let admission = Admission::new(limits, now);
        let mut open: Vec<(Prefix, Permit)> = Vec::new();
        for step in steps {
            match step {
                Step::Connect(address) => {
                    let prefix = Prefix::of(address);
                    let same = open.iter().filter(|(p, _)| *p == prefix).count();
                    let expected = if connections != 0 && open.len() >= connections as usize {
                        Err(Limit::Connections)
                    } else if connections_per_prefix != 0 && same >= connections_per_prefix as usize {
                        Err(Limit::ConnectionsPerPrefix)
                    } else {
                        Ok(())
                    };
                    let got = admission.admit(address, now);
                    prop_assert_eq!(got.as_ref().map(|_| ()), expected.as_ref().copied());
                    open.extend(got.ok().map(|permit| (prefix, permit)));
                }
                Step::Leave(index) if !open.is_empty() => {
                    drop(open.swap_remove(index % open.len()));
                }
                Step::Leave(_) | Step::Wait(_) => {}
            }
            prop_assert_eq!(admission.connections(), open.len() as u64);
        }
        open.clear();
        prop_assert_eq!(admission.connections(), 0);
        prop_assert_eq!(admission.prefixes(), 0, "nothing stays behind");
    }

    /// Over any time t at most rate × (t + 1 s) handshakes pass, and the first second's worth
    /// always does.
    #[test]
    fn handshakes_keep_to_the_rate(
        rate in 1u32..50,
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        let start = Instant::now();
        let mut now = start;
        let admission = Admission::new(AdmissionLimits { handshakes_per_second: rate, ..OFF }, now);
        let mut passed = 0u32;
        for step in steps {
            match step {
                Step::Connect(address) => {
                    let next = admission.next_handshake(now);
                    match (admission.admit(address, now), next) {
                        (Ok(_permit), None) => passed += 1,
                        (Err(limit), Some(at)) => {
                            prop_assert_eq!(limit, Limit::HandshakesPerSecond);
                            prop_assert!(passed >= rate, "the first second's worth passes");
                            prop_assert!(admission.next_handshake(at).is_none() && at > now);
                        }
                        (admitted, next) => prop_assert!(false, "{admitted:?}, next {next:?}"),
                    }
                }
                Step::Leave(_) => {}
                Step::Wait(ms) => now += Duration::from_millis(ms.into()),
            }
            let bound = f64::from(rate) * (now - start + Duration::from_secs(1)).as_secs_f64();
            prop_assert!(f64::from(passed) <= bound + 1.0, "{} passed, {} allowed", passed, bound);
        }
    }
}

#[test]
fn who_keeps_to_the_rate_is_never_refused() {
    let start = Instant::now();
    let limits = AdmissionLimits {
        handshakes_per_second: 3,
        ..OFF
    };
    let admission = Admission::new(limits, start);
    for third in 0..1_000 {
        let now = start + Duration::from_secs(1) * third / 3 + Duration::from_nanos(1);
        assert!(
            admission.admit([10, 0, 0, 1].into(), now).is_ok(),
            "after {third}/3 s"
        );
    }
}

#[test]
fn a_refused_connection_uses_nothing_up() {
    let now = Instant::now();
    let limits = AdmissionLimits {
        connections: 1,
        connections_per_prefix: 1,
        handshakes_per_second: 2,
    };
    let admission = Admission::new(limits, now);
    let first = admission
        .admit([10, 0, 0, 1].into(), now)
        .expect("there is room");
    for _ in 0..10 {
        assert_eq!(
            admission.admit([10, 0, 1, 1].into(), now).err(),
            Some(Limit::Connections)
        );
    }
    drop(first);
    let second = admission.admit([10, 0, 0, 2].into(), now);
    assert!(
        second.is_ok(),
        "refusals took no handshake out of the bucket"
    );
    drop(second);
    let third = admission.admit([10, 0, 0, 3].into(), now);
    assert_eq!(third.err(), Some(Limit::HandshakesPerSecond));
    assert_eq!((admission.connections(), admission.prefixes()), (0, 0));
}

#[test]
fn a_panicking_worker_gives_its_places_back() {
    let now = Instant::now();
    let admission = Admission::new(
        AdmissionLimits {
            connections: 2,
            ..OFF
        },
        now,
    );
    let of_worker = Arc::clone(&admission);
    let worker = std::thread::spawn(move || {
        let _permits = [1, 2].map(|host| of_worker.admit([10, 0, 0, host].into(), now));
        panic!("on purpose");
    });
    assert!(worker.join().is_err());
    assert_eq!(admission.connections(), 0);
}

#[test]
fn while_memory_is_short_nobody_comes_in_but_a_few_to_be_told() {
    let now = Instant::now();
    let admission = Admission::new(OFF, now);
    let address = [10, 0, 0, 1].into();
    let inside = admission.admit(address, now);
    assert!(inside.is_ok());
    let short = |level| {
        admission.overload().set_memory(MemoryNow {
            level,
            ..MemoryNow::default()
        });
    };
    short(1);
    for refused in [admission.admit(address, now), admission.admit_proxied(now)] {
        assert_eq!(refused.err(), Some(Limit::MemoryLimit));
    }
    let told: Vec<_> = std::iter::from_fn(|| admission.admit_to_refuse())
        .take(10_000)
        .collect();
    assert_eq!(told.len(), TO_REFUSE_MAX as usize);
    assert_eq!(admission.connections(), 1 + told.len() as u64);
    drop(told);
    assert!(admission.admit_to_refuse().is_some());
    assert_eq!(admission.connections(), 1);
    short(0);
    assert!(admission.admit(address, now).is_ok());
}
