//! What a backlog keeps, joins and gives up, against a socket that takes what a test lets it take.

use std::net::SocketAddr;

use quinn_proto::EcnCodepoint;

use super::*;

fn destination(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn transmit(port: u16, size: usize, segment_size: Option<usize>) -> Transmit {
    Transmit {
        destination: destination(port),
        ecn: Some(EcnCodepoint::Ect0),
        size,
        segment_size,
        src_ip: None,
    }
}

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// What a socket would have been given.
#[derive(Default)]
struct Wire {
    datagrams: Vec<(u16, Vec<u8>)>,
}

impl Wire {
    fn take(&mut self, buffer: &[u8], parts: &[Part]) -> io::Result<usize> {
        assert!(!parts.is_empty() && parts.len() <= MESSAGES_PER_CALL);
        for part in parts {
            let bytes = &buffer[part.start..part.start + part.len];
            for datagram in bytes.chunks(part.segment_bytes.map_or(bytes.len(), usize::from)) {
                self.datagrams
                    .push((part.destination.port(), datagram.to_vec()));
            }
        }
        Ok(parts.len())
    }
}

#[test]
fn what_the_kernel_does_not_take_waits_in_order() {
    let mut backlog = Backlog::new();
    for number in 0..200u16 {
        backlog.push(&transmit(number, 100, None), &[number as u8; 100]);
    }
    let mut wire = Wire::default();
    let mut calls = 0;
    let sent = backlog.flush(|buffer, parts| {
        calls += 1;
        match calls {
            1 => wire.take(buffer, &parts[..10]),
            _ => Err(error(libc::EAGAIN)),
        }
    });
    assert_eq!(sent.unwrap(), 10);
    assert_eq!(
        (backlog.queue.len(), backlog.counters.would_block),
        (190, 1)
    );
    backlog.push(&transmit(200, 100, None), &[200; 100]);
    assert_eq!(
        backlog
            .flush(|buffer, parts| wire.take(buffer, parts))
            .unwrap(),
        191
    );
    let expected: Vec<_> = (0..=200)
        .map(|number| (number, vec![number as u8; 100]))
        .collect();
    assert_eq!(wire.datagrams, expected);
    assert_eq!(backlog.counters.dropped(), 0);
}

#[test]
fn a_full_backlog_drops_the_oldest_and_counts_them() {
    let mut backlog = Backlog::new();
    let total = 10_000u32;
    for number in 0..total {
        backlog.push(
            &transmit(number as u16, 1000, None),
            &[&number.to_be_bytes()[..], &[0; 996]].concat(),
        );
        assert!(
            backlog.buffer.len() <= BACKLOG_BYTES_MAX
                && backlog.queue.len() <= BACKLOG_MESSAGES_MAX
        );
    }
    let mut wire = Wire::default();
    backlog
        .flush(|buffer, parts| wire.take(buffer, parts))
        .unwrap();
    let dropped = backlog.counters.dropped_full as u32;
    assert!(dropped > 0);
    let numbers: Vec<u32> = wire
        .datagrams
        .iter()
        .map(|(_, bytes)| u32::from_be_bytes(bytes[..4].try_into().unwrap()))
        .collect();
    assert_eq!(
        numbers,
        (dropped..total).collect::<Vec<_>>(),
        "the newest are there, whole and in order"
    );
    for number in 0..BACKLOG_MESSAGES_MAX + 1 {
        backlog.push(&transmit(number as u16, 1, None), &[number as u8]);
    }
    assert!(backlog.queue.len() <= BACKLOG_MESSAGES_MAX);
}

/// What follows each other to one socket shares a message, as far as the kernel can cut it again.
#[test]
fn datagrams_for_one_socket_leave_as_trains() {
    // (port, lengths of the datagrams pushed, messages expected)
    for (pushed, messages) in [
        (vec![(1, 100), (1, 100), (1, 100)], 1),
        (vec![(1, 100), (1, 100), (1, 60)], 1),
        // The short one is the end of a train.
        (vec![(1, 100), (1, 60), (1, 100), (1, 100)], 2),
        (vec![(1, 100), (1, 101)], 2),
        (vec![(1, 100), (2, 100), (1, 100)], 3),
        (vec![(1, 100); SEGMENTS_MAX + 1], 2),
        (vec![(1, 1452); 46], 2),
    ] {
        let mut backlog = Backlog::new();
        let mut expected = Vec::new();
        for (number, &(port, len)) in pushed.iter().enumerate() {
            let bytes = vec![number as u8; len];
            backlog.push(&transmit(port, len, None), &bytes);
            expected.push((port, bytes));
        }
        assert_eq!(backlog.queue.len(), messages, "{pushed:?}");
        let mut wire = Wire::default();
        let sent = backlog.flush(|buffer, parts| wire.take(buffer, parts));
        assert_eq!(sent.unwrap(), pushed.len());
        assert_eq!(wire.datagrams, expected);
    }
}

#[test]
fn errors_of_one_destination_concern_no_other() {
    let mut backlog = Backlog::new();
    let codes = [
        libc::ECONNREFUSED,
        libc::ENETUNREACH,
        libc::EMSGSIZE,
        libc::EPERM,
        libc::ENOBUFS,
        libc::EOPNOTSUPP,
    ];
    for number in 0..12 {
        backlog.push(&transmit(number, 4, None), b"data");
    }
    let mut wire = Wire::default();
    let sent = backlog.flush(|buffer, parts| {
        let bad = |part: &Part| part.destination.port() % 2 == 1;
        match parts.iter().position(bad) {
            Some(0) => Err(error(codes[usize::from(parts[0].destination.port() / 2)])),
            Some(good) => wire.take(buffer, &parts[..good]),
            None => wire.take(buffer, parts),
        }
    });
    assert_eq!(sent.unwrap(), 6);
    let SendCounters {
        refused,
        unreachable,
        too_long,
        forbidden,
        no_memory,
        other_errors,
        ..
    } = backlog.counters;
    assert_eq!(
        [
            refused,
            unreachable,
            too_long,
            forbidden,
            no_memory,
            other_errors
        ],
        [1; 6]
    );
    assert_eq!(
        wire.datagrams
            .iter()
            .map(|(port, _)| *port)
            .collect::<Vec<_>>(),
        [0, 2, 4, 6, 8, 10]
    );
    assert!(backlog.buffer.is_empty());
}

#[test]
fn a_broken_socket_is_an_error() {
    let mut backlog = Backlog::new();
    backlog.push(&transmit(1, 4, None), b"data");
    assert_eq!(
        backlog
            .flush(|_, _| Err(error(libc::EBADF)))
            .unwrap_err()
            .raw_os_error(),
        Some(libc::EBADF)
    );
}

#[test]
fn without_gso_trains_are_cut_here() {
    for code in [libc::EIO, libc::EINVAL] {
        let mut backlog = Backlog::new();
        let bytes: Vec<u8> = (0..5_500).map(|i| i as u8).collect();
        for port in [1, 2] {
            backlog.push(&transmit(port, bytes.len(), Some(1_000)), &bytes);
        }
        let mut wire = Wire::default();
        let sent = backlog.flush(|buffer, parts| match parts[0].segment_bytes {
            Some(_) => Err(error(code)),
            None => wire.take(buffer, parts),
        });
        assert_eq!(sent.unwrap(), 12);
        assert!(!backlog.gso, "it does not ask again");
        for (port, chunk) in [1, 2]
            .into_iter()
            .flat_map(|port| bytes.chunks(1_000).map(move |chunk| (port, chunk)))
        {
            assert_eq!(wire.datagrams.remove(0), (port, chunk.to_vec()));
        }
        assert_eq!(backlog.counters.dropped(), 0);
    }
}

#[test]
fn an_invalid_message_is_no_proof_against_gso() {
    let mut backlog = Backlog::new();
    backlog.push(&transmit(1, 3_000, Some(1_000)), &[1; 3_000]);
    backlog.push(&transmit(2, 3_000, Some(1_000)), &[2; 3_000]);
    let mut wire = Wire::default();
    let sent = backlog.flush(|buffer, parts| match parts[0].destination.port() {
        1 => Err(error(libc::EINVAL)),
        _ => wire.take(buffer, parts),
    });
    assert_eq!(sent.unwrap(), 3);
    assert!(backlog.gso);
    assert_eq!(backlog.counters.other_errors, 1);
}

#[test]
fn trains_beyond_the_kernels_limits_are_cut() {
    let mut backlog = Backlog::new();
    backlog.push(&transmit(1, 100_000, Some(1_000)), &[7; 100_000]);
    backlog.push(&transmit(1, 50_000, Some(16_000)), &[8; 50_000]);
    let mut wire = Wire::default();
    let sent = backlog.flush(|buffer, parts| {
        for part in parts {
            let segment = part.segment_bytes.map_or(part.len, usize::from);
            assert!(part.len <= SEGMENTED_BYTES_MAX && part.len.div_ceil(segment) <= SEGMENTS_MAX);
        }
        wire.take(buffer, parts)
    });
    assert_eq!(sent.unwrap(), 104);
}
