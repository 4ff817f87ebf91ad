// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Who holds blocks.

/// One node of a cluster: 16 bytes its owner drew once at random and keeps over restarts.
///
/// Not an address: addresses change, a node's blocks stay its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

crate::hex::hex_text!(NodeId);

#[cfg(test)]
mod tests {
    use super::NodeId;
    use crate::Error;

    #[test]
    fn text_is_thirty_two_digits() {
        let node = NodeId(*b"\x00\x01\xfe\xff0123456789ab");
        assert_eq!(node.to_string(), "0001feff303132333435363738396162");
        assert_eq!(node.to_string().parse(), Ok(node));
        for bad in [
            "",
            "00",
            "0001feff30313233343536373839616",
            "zz01feff303132333435363738396162",
        ] {
            assert_eq!(
                bad.parse::<NodeId>(),
                Err(Error::NotHex { digits: 32 }),
                "{bad}"
            );
        }
    }
}
