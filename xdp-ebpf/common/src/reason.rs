//! Why a packet was dropped, let through or answered. The kernel counts by these, and `bpftool map dump` prints their
//! names.

use crate::records::{Counter, PassCounter};

macro_rules! reasons {
    (
        $(#[$doc:meta])* $name:ident, $(#[$counters_doc:meta])* $counters:ident of $counter:ty
        { $($(#[$variant_doc:meta])* $variant:ident = $snake:ident,)+ }
    ) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The reason in snake case, as the maps, the metrics and `headgate status` show it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($snake),)+
                }
            }
        }

        $(#[$counters_doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $counters {
            $($(#[$variant_doc])* pub $snake: $counter,)+
        }

        impl $counters {
            /// The counter of a reason.
            #[must_use]
            pub const fn of(&self, reason: $name) -> &$counter {
                match reason {
                    $($name::$variant => &self.$snake,)+
                }
            }

            /// Every reason with its counter.
            pub fn iter(&self) -> impl Iterator<Item = ($name, $counter)> + '_ {
                $name::ALL.iter().map(|reason| (*reason, *self.of(*reason)))
            }

            /// Adds another CPU's counters.
            pub fn add(&mut self, other: &Self) {
                $(self.$snake.add(&other.$snake);)+
            }
        }

        // The kernel program finds a counter by its reason's number.
        const _: () = assert!(size_of::<$counters>() == $name::ALL.len() * size_of::<$counter>());
    };
}

reasons! {
    /// Why a packet was dropped.
    DropReason,
    /// The map `drops`: one counter per reason.
    Drops of Counter
    {
        /// Its headers contradict each other or its length.
        MalformedHeader = malformed_header,
        /// Fragments and packets with IP options or extension headers were above their budget.
        FragmentBudget = fragment_budget,
        /// Its source is on the deny list.
        Denied = denied,
        /// A UDP datagram too short to be a QUIC packet for us.
        Runt = runt,
        /// A short header whose connection ID we did not make (RFC 9000 §5.2.2 would answer with a reset or drop).
        ForgedCid = forged_cid,
        /// A connection ID of ours that belongs to another node.
        OtherNode = other_node,
        /// A Handshake packet whose connection ID we did not make.
        HandshakeForeignCid = handshake_foreign_cid,
        /// Version 0: a Version Negotiation packet, which only servers send (RFC 9000 §17.2.1).
        VersionZero = version_zero,
        /// An unknown version in a datagram too short to be answered (RFC 9000 §6.1).
        UnknownVersionShort = unknown_version_short,
        /// Version Negotiation answers were above their budget.
        VersionNegotiationBudget = version_negotiation_budget,
        /// A Retry packet, which only servers send (RFC 9000 §17.2.5).
        RetryFromClient = retry_from_client,
        /// A connection ID longer than 20 bytes, or a first one shorter than 8 (RFC 9000 §7.2, §17.2).
        CidLength = cid_length,
        /// An Initial in a datagram shorter than 1,200 bytes (RFC 9000 §14.1).
        InitialTooShort = initial_too_short,
        /// Initials of all sources together were above their budget.
        InitialGlobalBudget = initial_global_budget,
        /// Initials of the source's prefix were above their budget.
        InitialPrefixBudget = initial_prefix_budget,
        /// Initials with a valid token, of all sources together, were above their budget.
        ValidatedBudget = validated_budget,
        /// Initials with a valid token, of one address, were above their budget: a token is repeated too often.
        ValidatedAddressBudget = validated_address_budget,
        /// A token of one of our Retry packets that is too old.
        RetryTokenExpired = retry_token_expired,
        /// A token of one of our Retry packets that was sent to another address.
        RetryTokenElsewhere = retry_token_elsewhere,
        /// Retry answers were above their budget.
        RetryBudget = retry_budget,
        /// Packets of the source's prefix were above their budget.
        PacketPrefixBudget = packet_prefix_budget,
        /// Packets with a connection ID that is policed (`penalties`) were above their rate.
        Penalty = penalty,
        /// TCP SYNs of the source's prefix were above their budget.
        SynPrefixBudget = syn_prefix_budget,
        /// No worker accepts connections.
        NoWorker = no_worker,
        /// The answer could not be written into the packet.
        AnswerFailed = answer_failed,
    }
}

reasons! {
    /// Why a packet was let through.
    PassReason,
    /// The map `passes`: one counter per reason.
    Passes of PassCounter
    {
        /// A short header with a connection ID of ours.
        OwnCid = own_cid,
        /// A long header with a connection ID of ours: the rest of a handshake.
        OwnCidLong = own_cid_long,
        /// A connection ID of ours whose worker slot is gone: whoever gets it answers with a stateless reset.
        OwnCidOrphan = own_cid_orphan,
        /// A client's first Initials, by hash.
        Initial = initial,
        /// A client's Initials with a token of one of our Retry packets.
        InitialRetryToken = initial_retry_token,
        /// A client's Initials with a token of one of our NEW_TOKEN frames.
        InitialNewToken = initial_new_token,
        /// A client's Initials with a token that we did not make, while none is needed.
        InitialForeignToken = initial_foreign_token,
        /// A client's Initials with a token of a NEW_TOKEN frame that is too old or of another address, while none is
        /// needed.
        InitialInvalidNewToken = initial_invalid_new_token,
        /// 0-RTT that follows a client's first Initial, by hash.
        ZeroRtt = zero_rtt,
        /// A fragment or a packet with IP options or extension headers, within its budget; not steered.
        Fragment = fragment,
        /// A TCP segment that opens a connection.
        TcpSyn = tcp_syn,
        /// Any other TCP segment.
        Tcp = tcp,
    }
}

reasons! {
    /// What a packet was answered with, in the kernel.
    AnswerReason,
    /// The map `answers`: one counter per reason.
    Answers of Counter
    {
        /// A Version Negotiation packet (RFC 9000 §6.1).
        VersionNegotiation = version_negotiation,
        /// A Retry packet (RFC 9000 §8.1.2), to an Initial without a token.
        Retry = retry,
        /// The same, to one with a token that we did not make.
        RetryForeignToken = retry_foreign_token,
        /// The same, to one with a token of a NEW_TOKEN frame that is too old or of another address.
        RetryInvalidNewToken = retry_invalid_new_token,
    }
}

reasons! {
    /// What the sk_reuseport program did with a datagram.
    SocketReason,
    /// The map `sockets`: one counter per reason.
    Sockets of Counter
    {
        /// Given to the worker that owns its connection ID.
        OwnCid = own_cid,
        /// Given to a worker by the hash of a client's connection ID.
        Hashed = hashed,
        /// Dropped: its worker has no socket and no other one may have it.
        NoSocket = no_socket,
        /// Dropped: no QUIC packet for us (see `drops` for the reasons that XDP sees).
        Refused = refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_and_a_counter_of_its_own() {
        let base = Drops::default();
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert_eq!(
                DropReason::ALL
                    .iter()
                    .filter(|other| other.name() == reason.name())
                    .count(),
                1
            );
            let offset =
                core::ptr::from_ref(base.of(*reason)).addr() - core::ptr::from_ref(&base).addr();
            assert_eq!(offset, number * size_of::<Counter>());
        }
        assert_eq!(DropReason::ForgedCid.name(), "forged_cid");
    }
}
