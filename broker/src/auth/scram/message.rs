//! The client's two messages (RFC 5802 §7), taken apart.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::verifier::{Key, key};

/// Longest message of a client, bytes. Worst case: kept once for each exchange that waits for its
/// client, and as much again for the answer.
pub const MESSAGE_BYTES_MAX: usize = 2_048;

/// client-first-message.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientFirst<'a> {
    /// gs2-header: what the second message has to repeat.
    pub gs2_header: &'a str,
    /// client-first-message-bare.
    pub bare: &'a str,
    /// The user name, decoded.
    pub name: String,
    /// The client's nonce.
    pub nonce: &'a str,
}

impl<'a> ClientFirst<'a> {
    /// Takes it apart; `None` if it isn't one, or asks for what there isn't: channel binding, an
    /// extension, or to act for another user.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let text = text(data)?;
        let (flag, rest) = text.split_once(',')?;
        let (authorization, bare) = rest.split_once(',')?;
        // "y": the client could bind to the channel and has seen that the server can't.
        if !matches!(flag, "n" | "y") {
            return None;
        }
        let mut attributes = bare.split(',');
        let name = saslname(attributes.next()?.strip_prefix("n=")?)?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        if !authorization.is_empty() && saslname(authorization.strip_prefix("a=")?)? != name {
            return None;
        }
        let is_nonce = !nonce.is_empty() && nonce.bytes().all(|b| b.is_ascii_graphic());
        is_nonce.then_some(Self {
            gs2_header: &text[..text.len() - bare.len()],
            bare,
            name,
            nonce,
        })
    }
}

/// client-final-message.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientFinal<'a> {
    /// client-final-message-without-proof.
    pub without_proof: &'a str,
    /// The gs2-header that the client says it sent (c=, decoded).
    pub gs2_header: Vec<u8>,
    /// Both nonces.
    pub nonce: &'a str,
    /// ClientProof.
    pub proof: Key,
}

impl<'a> ClientFinal<'a> {
    /// Takes it apart; `None` if it isn't one.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let text = text(data)?;
        let (without_proof, proof) = text.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next()?.strip_prefix("c=")?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        Some(Self {
            without_proof,
            gs2_header: BASE64_STANDARD.decode(binding).ok()?,
            nonce,
            proof: key(proof)?,
        })
    }
}

fn text(data: &[u8]) -> Option<&str> {
    let text = str::from_utf8(data).ok()?;
    (text.len() <= MESSAGE_BYTES_MAX && !text.contains('\0')).then_some(text)
}

/// A name in which "," and "=" are written as "=2C" and "=3D"; any other "=" is wrong.
fn saslname(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut parts = text.split('=');
    name.push_str(parts.next()?);
    for part in parts {
        let (character, rest) = if let Some(rest) = part.strip_prefix("2C") {
            (',', rest)
        } else {
            ('=', part.strip_prefix("3D")?)
        };
        name.push(character);
        name.push_str(rest);
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_messages_are_taken_apart() {
        let first = ClientFirst::parse(b"y,a=a=2Cb=3D,n=a=2Cb=3D,r=x!,ext=1").expect("right");
        assert_eq!((first.gs2_header, &*first.name), ("y,a=a=2Cb=3D,", "a,b="));
        assert_eq!((first.bare, first.nonce), ("n=a=2Cb=3D,r=x!,ext=1", "x!"));
        for wrong in [
            "",
            "n",
            "n,",
            "n,,",
            "p=tls-unique,,n=a,r=x",
            "n,a=b,n=a,r=x",
            "n,b,n=a,r=x",
            "n,,m=1,n=a,r=x",
            "n,,n=a",
            "n,,n=,r=x",
            "n,,n=a,r=",
            "n,,r=x,n=a",
            "n,,n=a=2c,r=x",
            "n,,n=a=,r=x",
            "n,,n=a,r=x y",
            "n,,n=a\0,r=x",
            "x,,n=a,r=x",
        ] {
            assert_eq!(ClientFirst::parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(ClientFirst::parse(b"n,,n=\xff,r=x"), None);
        let long = format!("n,,n=a,r={}", "x".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(ClientFirst::parse(long.as_bytes()), None);
    }

    #[test]
    fn final_messages_are_taken_apart() {
        let proof = BASE64_STANDARD.encode([7; 32]);
        let message = format!("c=biws,r=xy,ext=1,p={proof}");
        let last = ClientFinal::parse(message.as_bytes()).expect("right");
        assert_eq!(
            (last.without_proof, last.nonce),
            ("c=biws,r=xy,ext=1", "xy")
        );
        assert_eq!((&*last.gs2_header, last.proof), (&b"n,,"[..], [7; 32]));
        for wrong in [
            String::new(),
            "c=biws,r=xy".to_owned(),
            "c=biws,r=xy,p=".to_owned(),
            "c=biws,r=xy,p=AAAA".to_owned(),
            format!("c=biws,p={proof}"),
            format!("r=xy,c=biws,p={proof}"),
            format!("c=bi ws,r=xy,p={proof}"),
            format!("c=biws,r=xy,p={proof},"),
        ] {
            assert_eq!(ClientFinal::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    fn near_message() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "n", "y", ",", "a=", "n=", "r=", "c=biws", "p=", "=2C", "=3D", "=", "x", "é", "AAAA",
        ]);
        prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_made_of_its_parts(text in near_message()) {
            if let Some(first) = ClientFirst::parse(text.as_bytes()) {
                prop_assert_eq!(format!("{}{}", first.gs2_header, first.bare), &*text);
                let name = first.name.replace('=', "=3D").replace(',', "=2C");
                let begin = format!("n={name},r={}", first.nonce);
                prop_assert!(first.bare.starts_with(&begin));
            }
            if let Some(last) = ClientFinal::parse(text.as_bytes()) {
                prop_assert!(text.starts_with(last.without_proof));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (ClientFirst::parse(&data), ClientFinal::parse(&data));
        }
    }
}
