// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The only place that reads the clock. Cores get the time as an argument.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since the first call in this process; never goes back.
#[expect(clippy::disallowed_methods, reason = "the shells' one clock")]
pub(crate) fn monotonic_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// Seconds since 1970, which outlive the process: what expiry is counted in.
#[expect(clippy::disallowed_methods, reason = "the shells' one clock")]
pub(crate) fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
