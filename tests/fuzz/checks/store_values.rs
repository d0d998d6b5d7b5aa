//! Whatever bytes the store has, its values are read or refused, and what was read is written as the same bytes. The fuzz
//! target and the replay of its corpus share this.

use bytes::Bytes;

#[expect(dead_code, reason = "the check needs less of it than the broker")]
#[path = "../../../broker/src/store/codec.rs"]
mod codec;
#[expect(dead_code, reason = "the check needs less of it than the broker")]
#[path = "../../../broker/src/store/keys.rs"]
mod keys;

use codec::{Calendar, Reader, Writer};

/// `data`: an octet that chooses the kind of value, then the value.
pub fn check(data: &[u8]) {
    let [kind, value @ ..] = data else { return };
    let calendar = Calendar::new(0);
    let Ok(reader) = Reader::new(Bytes::copy_from_slice(value), calendar) else {
        return;
    };
    let writer = Writer::new(calendar);
    let again = match kind % 6 {
        0 => reader.opened().map(|read| writer.opened(&read)),
        1 => reader.closed().map(|read| writer.closed(&read)),
        2 => reader.subscription().map(|read| writer.subscription(read)),
        3 => reader.queued().map(|read| {
            let of = (read.qos, read.retain);
            writer.queued(
                of,
                read.ids.as_deref(),
                read.packet_id,
                read.group.as_ref(),
                &read.message,
            )
        }),
        4 => reader.retained().map(|read| writer.retained(&read)),
        _ => reader.id().map(|read| writer.id(read)),
    };
    if let Ok(again) = again {
        assert_eq!(again, value, "written differently");
    }
}
