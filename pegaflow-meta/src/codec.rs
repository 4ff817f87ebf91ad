// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Reading and writing the fields of a canonical encoding: little-endian integers and
//! length-prefixed byte strings.
//!
//! Invariant: the reader allocates nothing before it has checked a length against its limit and
//! against the bytes that are really there.

use crate::Error;

#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.fixed(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.fixed(&value.to_le_bytes());
    }

    /// Length as u16, then the bytes.
    pub(crate) fn bytes(
        &mut self,
        field: &'static str,
        value: &[u8],
        max: usize,
    ) -> Result<(), Error> {
        let len = value.len();
        match u16::try_from(len) {
            Ok(short) if len <= max => self.u16(short),
            _ => return Err(Error::TooLong { field, len, max }),
        }
        self.fixed(value);
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, field: &'static str, wanted: usize) -> Result<&'a [u8], Error> {
        let Some((head, rest)) = self.0.split_at_checked(wanted) else {
            return Err(Error::Truncated {
                field,
                wanted,
                left: self.0.len(),
            });
        };
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Error> {
        Ok(self
            .take(field, N)?
            .try_into()
            .expect("`take` returns what was asked"))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Error> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Error> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], Error> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(Error::TooLong { field, len, max });
        }
        self.take(field, len)
    }

    pub(crate) fn text(&mut self, field: &'static str, max: usize) -> Result<String, Error> {
        let bytes = self.bytes(field, max)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Error::NotText(field)),
        }
    }

    pub(crate) fn end(self) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            more => Err(Error::TrailingBytes(more)),
        }
    }
}
