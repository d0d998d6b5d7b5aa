//! What must hold for the route of any datagram. The fuzz target, the property tests and the replay of the corpus share
//! this.

use headgate_common::cid::CID_LEN;
use headgate_common::{CidKeys, DropReason, Form, Route, Router, Secrets, SipKey, Steering};

const NODE: u16 = 0x0102;
const ACTIVE: [u8; 3] = [0, 3, 200];
const DRAINING: [u8; 1] = [9];

fn router() -> Router {
    let key = |n| SipKey { k0: n, k1: !n };
    let secrets = Secrets {
        cid: CidKeys::new(4, key(4)).with_former(3, key(3)),
        initial: key(5),
        prefix: key(6),
    };
    Router {
        secrets,
        steering: Steering::with_slots(NODE, &ACTIVE, &DRAINING),
    }
}

/// `data`: an octet that says which connection ID of ours, if any, is put in, and then a datagram.
pub fn check(data: &[u8]) {
    let Some((&choice, datagram)) = data.split_first() else {
        return;
    };
    let router = router();
    let mut datagram = datagram.to_vec();
    put_cid(&router, choice, &mut datagram);
    let route = router.route(&datagram);
    assert_eq!(shape(route), expected(&router, &datagram));
    if let Some(slot) = route.slot() {
        let known = ACTIVE.contains(&slot)
            || DRAINING.contains(&slot) && matches!(route, Route::Own { .. });
        assert!(known, "{route:?} has no such worker");
    }
    // Nothing behind the connection IDs matters, so every packet of a connection goes the same way.
    if !matches!(route, Route::Refuse(_)) {
        let end = if datagram[0] & 0x80 == 0 {
            1 + CID_LEN
        } else {
            7 + usize::from(datagram[5])
        };
        datagram[end..].iter_mut().for_each(|byte| *byte = 0);
        assert_eq!(router.route(&datagram), route);
    }
}

fn put_cid(router: &Router, choice: u8, datagram: &mut [u8]) {
    let slot = [0, 3, 9, 77][usize::from(choice & 3)];
    let cid = router
        .secrets
        .cid
        .encode(NODE + u16::from(choice >> 6), slot, [choice; 6]);
    let long = datagram.first().is_some_and(|first| first & 0x80 != 0);
    let at = if long { 6 } else { 1 };
    if choice & 4 != 0 && datagram.len() >= at + CID_LEN {
        datagram[at..at + CID_LEN].copy_from_slice(&cid);
        if long {
            datagram[5] = CID_LEN as u8;
        }
    }
}

/// A route without the slots that a hash has chosen.
fn shape(route: Route) -> Route {
    match route {
        Route::Orphan { form, .. } => Route::Orphan { slot: 0, form },
        Route::New { form, .. } => Route::New { slot: 0, form },
        Route::UnknownVersion { .. } => Route::UnknownVersion { slot: 0 },
        other => other,
    }
}

/// The same decision, byte by byte, in the words of RFC 9000.
fn expected(router: &Router, datagram: &[u8]) -> Route {
    if datagram.len() < 32 {
        return Route::Refuse(DropReason::Runt);
    }
    if datagram[0] & 0x80 == 0 {
        return owned(router, &datagram[1..15], Form::Short)
            .unwrap_or(Route::Refuse(DropReason::ForgedCid));
    }
    let dcid_len = usize::from(datagram[5]);
    match datagram[1..5] {
        [0, 0, 0, 0] => return Route::Refuse(DropReason::VersionZero),
        [0, 0, 0, 1] => {}
        _ if datagram.len() < 1200 => return Route::Refuse(DropReason::UnknownVersionShort),
        _ if dcid_len > 20 || datagram[6 + dcid_len] > 20 => {
            return Route::Refuse(DropReason::CidLength);
        }
        _ => return Route::UnknownVersion { slot: 0 },
    }
    let form = match datagram[0] & 0x30 {
        0x00 if datagram.len() < 1200 => return Route::Refuse(DropReason::InitialTooShort),
        0x00 => Form::Initial,
        0x10 => Form::ZeroRtt,
        0x20 => Form::Handshake,
        _ => return Route::Refuse(DropReason::RetryFromClient),
    };
    let dcid = &datagram[6..datagram.len().min(6 + dcid_len)];
    match owned(router, dcid, form) {
        Some(route) => route,
        None if form == Form::Handshake => Route::Refuse(DropReason::HandshakeForeignCid),
        None if !(8..=20).contains(&dcid_len) => Route::Refuse(DropReason::CidLength),
        None => Route::New { slot: 0, form },
    }
}

fn owned(router: &Router, cid: &[u8], form: Form) -> Option<Route> {
    let fields = router.secrets.cid.decode(cid).ok()?;
    Some(match fields {
        _ if fields.node != NODE => Route::Refuse(DropReason::OtherNode),
        _ if ACTIVE.contains(&fields.slot) || DRAINING.contains(&fields.slot) => Route::Own {
            slot: fields.slot,
            form,
        },
        _ => Route::Orphan { slot: 0, form },
    })
}
