// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Errors as they travel: what to do about it, and a sentence.

use pegaflow_mem::ErrorKind;
use tonic::{Code, Status};

use super::proto::{Failure, failure::Kind};
use crate::error::Error;

const MESSAGE_BYTES_MAX: usize = 512;

fn kind_to_wire(kind: ErrorKind) -> Kind {
    match kind {
        ErrorKind::Retry => Kind::Retry,
        ErrorKind::Busy => Kind::Busy,
        ErrorKind::Invalid => Kind::Invalid,
        ErrorKind::Corrupt => Kind::Corrupt,
        ErrorKind::Unsupported => Kind::Unsupported,
        ErrorKind::Closed => Kind::Closed,
        _ => Kind::Internal,
    }
}

fn kind_from_wire(kind: Kind) -> ErrorKind {
    match kind {
        Kind::Retry => ErrorKind::Retry,
        Kind::Busy => ErrorKind::Busy,
        Kind::Invalid => ErrorKind::Invalid,
        Kind::Corrupt => ErrorKind::Corrupt,
        Kind::Unsupported => ErrorKind::Unsupported,
        Kind::Closed => ErrorKind::Closed,
        Kind::Internal | Kind::Unspecified => ErrorKind::Internal,
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut message = error.to_string();
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        }
        Self {
            kind: kind_to_wire(error.kind()).into(),
            message,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::Remote {
            kind: kind_from_wire(failure.kind()),
            message: failure.message,
        }
    }
}

/// The error as gRPC has it: a code that says what to do, the sentence, and the `Failure` as
/// details.
#[must_use]
pub(crate) fn to_status(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::Retry => Code::Unavailable,
        ErrorKind::Busy => Code::ResourceExhausted,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Unsupported => Code::FailedPrecondition,
        ErrorKind::Closed => Code::NotFound,
        _ => Code::Internal,
    };
    let failure = Failure::from(error);
    let details = prost::Message::encode_to_vec(&failure).into();
    Status::with_details(code, failure.message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_meaning_over_the_wire() {
        for kind in [
            ErrorKind::Retry,
            ErrorKind::Busy,
            ErrorKind::Invalid,
            ErrorKind::Corrupt,
            ErrorKind::Unsupported,
            ErrorKind::Closed,
            ErrorKind::Internal,
        ] {
            let message = "é".repeat(MESSAGE_BYTES_MAX);
            let error = Error::Remote { kind, message };
            let failure = Failure::from(&error);
            assert!(failure.message.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(Error::from(failure).kind(), kind);
        }
    }
}
