//! What of a client's transport parameters (RFC 9000 §18) quinn-proto is told.

use quinn_proto::{VarInt, coding::Codec};

/// Connection IDs that a client gets at a time, at most: one in use, and two for paths that it may turn to. Each costs
/// the server about 90 bytes, and a retired one is replaced at once (RFC 9000 §5.1.1).
pub(super) const CIDS_PER_CONNECTION: u32 = 3;

/// active_connection_id_limit (RFC 9000 §18.2).
const ACTIVE_CONNECTION_ID_LIMIT: VarInt = VarInt::from_u32(0x0e);

/// The parameters with a limit of connection IDs that is not above [`CIDS_PER_CONNECTION`]: a client says how many it
/// can take, not how many it needs. Parameters that don't parse are left as they are, for quinn-proto to refuse.
pub(super) fn with_few_cids(encoded: &[u8]) -> Vec<u8> {
    rewritten(encoded).unwrap_or_else(|| encoded.to_vec())
}

fn rewritten(mut encoded: &[u8]) -> Option<Vec<u8>> {
    let mut rewritten = Vec::with_capacity(encoded.len());
    while !encoded.is_empty() {
        let id = VarInt::decode(&mut encoded).ok()?;
        let len = VarInt::decode(&mut encoded).ok()?;
        let (mut value, rest) =
            encoded.split_at_checked(usize::try_from(len.into_inner()).ok()?)?;
        encoded = rest;
        let few;
        if id == ACTIVE_CONNECTION_ID_LIMIT {
            few = limited(value)?;
            value = &few;
        }
        id.encode(&mut rewritten);
        VarInt::try_from(value.len()).ok()?.encode(&mut rewritten);
        rewritten.extend_from_slice(value);
    }
    Some(rewritten)
}

fn limited(mut value: &[u8]) -> Option<Vec<u8>> {
    let limit = VarInt::decode(&mut value).ok()?;
    if !value.is_empty() {
        return None;
    }
    let mut few = Vec::new();
    limit.min(CIDS_PER_CONNECTION.into()).encode(&mut few);
    Some(few)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Encoded as RFC 9000 §18 says, values by hand.
    fn parameters(each: &[(u8, &[u8])]) -> Vec<u8> {
        let encode = |(id, value): &(u8, &[u8])| [&[*id, value.len() as u8], *value].concat();
        each.iter().flat_map(encode).collect()
    }

    #[test]
    fn a_limit_is_lowered_and_all_else_stays() {
        let encoded = parameters(&[(0x04, &[0x80, 1, 0, 0]), (0x0e, &[8]), (0x01, &[0x44, 0])]);
        let few = parameters(&[(0x04, &[0x80, 1, 0, 0]), (0x0e, &[3]), (0x01, &[0x44, 0])]);
        assert_eq!(with_few_cids(&encoded), few);
        // Two bytes for the value 1,000.
        let long = parameters(&[(0x0e, &[0x43, 0xe8])]);
        assert_eq!(with_few_cids(&long), parameters(&[(0x0e, &[3])]));
    }

    #[test]
    fn a_lower_limit_stays_and_so_does_a_wrong_one() {
        for value in [0, 1, 2, 3] {
            let encoded = parameters(&[(0x0e, &[value])]);
            assert_eq!(with_few_cids(&encoded), encoded);
        }
        for wrong in [
            &[0x0e, 2, 8][..],
            &[0x0e, 2, 8, 9],
            &[0x0e, 0],
            &[0x0e],
            &[0xff],
        ] {
            assert_eq!(with_few_cids(wrong), wrong);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let once = with_few_cids(&bytes);
            prop_assert_eq!(with_few_cids(&once), once.clone());
        }
    }
}
