// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What can be wrong with a name. Every error of this crate means the same to the caller: the
//! input is invalid, and asking again with the same bytes will not help.

/// Why bytes or text are not the name they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input ended inside a field.
    #[error("cut short: `{field}` needs {wanted} more bytes, {left} are left")]
    Truncated {
        /// The field being read.
        field: &'static str,
        /// Bytes the field needs.
        wanted: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// The input goes on after its last field.
    #[error("{0} bytes follow the last field")]
    TrailingBytes(usize),
    /// A length is over its limit.
    #[error("`{field}` is {len} long, {max} allowed")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length, in bytes or items.
        len: usize,
        /// The most allowed.
        max: usize,
    },
    /// A field has a value that no encoder writes.
    #[error("`{field}` cannot be {value}")]
    BadValue {
        /// The field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// A text field is not UTF-8.
    #[error("`{0}` is not UTF-8")]
    NotText(&'static str),
    /// The encoding is of a version this build does not know.
    #[error("encoding version {0} is not known to this build")]
    UnknownVersion(u16),
    /// Text that should be a number of hexadecimal digits is not.
    #[error("expected {digits} hexadecimal digits")]
    NotHex {
        /// Digits expected.
        digits: usize,
    },
}
