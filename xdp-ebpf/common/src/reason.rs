//! Why a packet was dropped, let through or answered. The kernel counts by these, and `bpftool map dump` prints their
//! names.

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The reason in snake case, as metrics and `headgate status` show it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The reason with this number.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                Self::ALL.get(number as usize).copied()
            }
        }
    };
}

reasons! {
    /// Why a packet was dropped.
    DropReason {
        /// Its headers contradict each other or its length.
        MalformedHeader = "malformed_header",
        /// Fragments and packets with IP options or extension headers were above their budget.
        FragmentBudget = "fragment_budget",
        /// Its source is on the deny list.
        Denied = "denied",
        /// A UDP datagram too short to be a QUIC packet for us.
        Runt = "runt",
        /// A short header whose connection ID we did not make (RFC 9000 §5.2.2 would answer with a reset or drop).
        ForgedCid = "forged_cid",
        /// A connection ID of ours that belongs to another node.
        OtherNode = "other_node",
        /// A Handshake packet whose connection ID we did not make.
        HandshakeForeignCid = "handshake_foreign_cid",
        /// Version 0: a Version Negotiation packet, which only servers send (RFC 9000 §17.2.1).
        VersionZero = "version_zero",
        /// An unknown version in a datagram too short to be answered (RFC 9000 §6.1).
        UnknownVersionShort = "unknown_version_short",
        /// Version Negotiation answers were above their budget.
        VersionNegotiationBudget = "version_negotiation_budget",
        /// A Retry packet, which only servers send (RFC 9000 §17.2.5).
        RetryFromClient = "retry_from_client",
        /// A connection ID longer than 20 bytes, or a first one shorter than 8 (RFC 9000 §7.2, §17.2).
        CidLength = "cid_length",
        /// An Initial in a datagram shorter than 1,200 bytes (RFC 9000 §14.1).
        InitialTooShort = "initial_too_short",
        /// Initials of all sources together were above their budget.
        InitialGlobalBudget = "initial_global_budget",
        /// Initials of the source's prefix were above their budget.
        InitialPrefixBudget = "initial_prefix_budget",
        /// Packets of the source's prefix were above their budget.
        PacketPrefixBudget = "packet_prefix_budget",
        /// TCP SYNs of the source's prefix were above their budget.
        SynPrefixBudget = "syn_prefix_budget",
        /// No worker accepts connections.
        NoWorker = "no_worker",
        /// The answer could not be written into the packet.
        AnswerFailed = "answer_failed",
    }
}

reasons! {
    /// Why a packet was let through.
    PassReason {
        /// A short header with a connection ID of ours.
        OwnCid = "own_cid",
        /// A long header with a connection ID of ours: the rest of a handshake.
        OwnCidLong = "own_cid_long",
        /// A connection ID of ours whose worker slot is gone: whoever gets it answers with a stateless reset.
        OwnCidOrphan = "own_cid_orphan",
        /// A client's first Initials, by hash.
        Initial = "initial",
        /// 0-RTT that follows a client's first Initial, by hash.
        ZeroRtt = "zero_rtt",
        /// A fragment or a packet with IP options or extension headers, within its budget; not steered.
        Fragment = "fragment",
        /// A TCP segment that opens a connection.
        TcpSyn = "tcp_syn",
        /// Any other TCP segment.
        Tcp = "tcp",
    }
}

reasons! {
    /// What a packet was answered with, in the kernel.
    AnswerReason {
        /// A Version Negotiation packet (RFC 9000 §6.1).
        VersionNegotiation = "version_negotiation",
    }
}

reasons! {
    /// What the sk_reuseport program did with a datagram.
    SocketReason {
        /// Given to the worker that owns its connection ID.
        OwnCid = "own_cid",
        /// Given to a worker by the hash of a client's connection ID.
        Hashed = "hashed",
        /// Dropped: its worker has no socket and no other one may have it.
        NoSocket = "no_socket",
        /// Dropped: no QUIC packet for us (see `drops` for the reasons that XDP sees).
        Refused = "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_reversible() {
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_number(number as u32), Some(*reason));
            assert_eq!(
                DropReason::ALL
                    .iter()
                    .filter(|other| other.name() == reason.name())
                    .count(),
                1
            );
        }
        assert_eq!(DropReason::from_number(DropReason::ALL.len() as u32), None);
        assert_eq!(PassReason::from_number(0), Some(PassReason::OwnCid));
    }
}
