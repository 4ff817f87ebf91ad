// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A block store on NVMe that runs at the drive's speed and keeps what it was given. Knows bytes and 16-byte keys, nothing else.
//!
//! So far: devices ([`disk`]) over io_uring or threads, with read priority, deadlines and faults on purpose; and the bare [`ring`].

mod clock;
pub mod disk;
mod error;
pub mod ring;
pub mod settings;
mod sys;
mod transfer;

pub use error::{Error, ErrorKind, IoKind, Result};
pub use settings::Settings;
pub use sys::{
    Arena, BlockFile, Buf, MemoryFile, OpenOptions, PAGE, Region, SystemFile, cpu_time_us, pages,
};
pub use transfer::{Finished, Piece, Transfer, WhenDone};
