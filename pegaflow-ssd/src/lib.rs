// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

#![doc = include_str!("../README.md")]
//!
//! # Inside
//! Pure: `format` (what lies on the device), `index`, `log` (segments, batches, acknowledgement, reclaim), `recover`, [`reclaim`] and
//! [`admission`] policies, [`disk::Scheduler`]. They read no clock, start no thread and do no I/O; a seeded simulation crashes them at every
//! point. Shells: [`ring`], [`disk`], and the store's thread for each device. Unsafe code lives in `sys` and [`ring`] only.

pub mod admission;
mod clock;
pub mod disk;
mod error;
mod format;
mod index;
mod key;
mod log;
pub mod metrics;
pub mod reclaim;
mod recover;
pub mod ring;
pub mod settings;
mod store;
mod sys;
mod transfer;

pub use error::{Error, ErrorKind, IoKind, Result};
pub use format::{FORMAT_VERSION, checksum};
pub use key::Key;
pub use recover::RecoveryReport;
pub use settings::Settings;
pub use store::{
    BlockInfo, BlockStore, Device, Done, Fetched, Get, Put, Refused, SsdStore, Stored, Ticket,
    inspect,
};
pub use sys::{
    Arena, BlockFile, Buf, MemoryFile, OpenOptions, PAGE, Region, SystemFile, cpu_time_us, pages,
};
pub use transfer::{Finished, Piece, Transfer, WhenDone};
