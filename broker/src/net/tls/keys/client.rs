//! The 1-RTT keys of a client that only has to stay alive: plain data, without rustls and quinn-proto.

use ring::aead;

use super::{Aes128Gcm, Cipher, DirectionKeys, TAG_LEN, next_secrets};

type Secret = <Aes128Gcm as Cipher>::Secret;

/// Keys of a connection with TLS13_AES_128_GCM_SHA256, and the secrets that the next phase's are made from: 152 bytes.
#[derive(Clone, Copy)]
pub struct ClientKeys {
    secrets: [Secret; 2],
    local: DirectionKeys<Aes128Gcm>,
    remote: DirectionKeys<Aes128Gcm>,
}

impl ClientKeys {
    /// From the traffic secrets of the client and of the server. `None` if they are another suite's.
    pub fn new(client: &[u8], server: &[u8]) -> Option<Self> {
        let secrets = [
            Secret::try_from(client).ok()?,
            Secret::try_from(server).ok()?,
        ];
        let [local, remote] = [&secrets[0], &secrets[1]].map(DirectionKeys::<Aes128Gcm>::derive);
        Some(Self {
            secrets,
            local,
            remote,
        })
    }

    /// The keys of the next phase (RFC 9001 §6.1). Those of header protection stay.
    #[must_use]
    pub fn next_phase(&self) -> Self {
        let secrets = next_secrets::<Aes128Gcm>(&self.secrets);
        let [local, remote] = [&secrets[0], &secrets[1]].map(DirectionKeys::<Aes128Gcm>::derive);
        Self {
            secrets,
            local: DirectionKeys {
                header: self.local.header,
                ..local
            },
            remote: DirectionKeys {
                header: self.remote.header,
                ..remote
            },
        }
    }

    /// Protects a packet, whose packet number of four bytes ends its header, and which ends with room for the tag.
    pub fn seal(&self, number: u64, packet: &mut [u8], header_len: usize) {
        use quinn_proto::crypto::{HeaderKey, PacketKey};
        self.local.packet.encrypt(number, packet, header_len);
        self.local.header.encrypt(header_len - 4, packet);
    }

    /// Uncovers the first byte and the packet number of a packet that came. `false`: it is too short.
    pub fn uncover(&self, packet: &mut [u8], number_at: usize) -> bool {
        use quinn_proto::crypto::HeaderKey;
        if packet.len() < number_at + 4 + TAG_LEN {
            return false;
        }
        self.remote.header.decrypt(number_at, packet);
        true
    }

    /// Opens an uncovered packet; its payload.
    pub fn open<'a>(
        &self,
        number: u64,
        packet: &'a mut [u8],
        header_len: usize,
    ) -> Option<&'a mut [u8]> {
        let (header, payload) = packet.split_at_mut(header_len);
        let nonce = self.remote.packet.nonce(number);
        let key = self.remote.packet.expand();
        let opened = key.open_in_place(nonce, aead::Aad::from(&*header), payload);
        opened.ok()
    }
}
