// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! How many bytes of reads the device has at once. Pure: told how long reads took, it reads no clock.
//!
//! A device needs enough to be busy. What it has beyond that only waits there, where nobody can take it back or let something else go
//! first, and passes through caches in vain. That excess shows in how long reads take compared with the fastest of their size, when next
//! to nothing was before them: of the bytes with the device, so large a part as the longer time is waiting.

/// Reads judged together.
const WINDOW: u64 = 32;
/// Never less than this, bytes: what one fast drive needs to be busy.
const FLOOR_BYTES: u64 = 4 << 20;
/// Never fewer transfers than this, however large: each ends at once with its last byte, and the next must be there.
const FLOOR_OPS: u64 = 4;
/// The excess is kept between these, bytes.
const EXCESS_LOW_BYTES: u64 = 2 << 20;
const EXCESS_HIGH_BYTES: u64 = 4 << 20;

/// A limit that finds its place.
#[derive(Debug)]
pub(super) struct Inflight {
    bytes: u64,
    bytes_max: u64,
    /// The least that a read took, microseconds, by the logarithm of its bytes.
    least_us: [u64; u64::BITS as usize],
    window: Window,
}

/// Sums over the reads that are judged together.
#[derive(Debug, Default)]
struct Window {
    ops: u64,
    us: u64,
    least_us: u64,
    inflight_bytes: u64,
}

impl Inflight {
    /// Moves below `bytes_max`.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes: FLOOR_BYTES.min(bytes_max),
            bytes_max,
            least_us: [u64::MAX; u64::BITS as usize],
            window: Window::default(),
        }
    }

    /// The limit now.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether one more of `bytes` may go when `ops` of `inflight_bytes` are out.
    pub(super) fn admits(&self, bytes: u64, ops: u64, inflight_bytes: u64) -> bool {
        let after = inflight_bytes + bytes;
        ops == 0 || after <= self.bytes || (ops < FLOOR_OPS && after <= self.bytes_max)
    }

    /// A read of `bytes` took `us` on the device, which had `inflight_bytes` until now. `waiting`: others would have gone, had the limit
    /// let them; else it was not the limit that decided.
    pub(super) fn done(&mut self, bytes: u64, us: u64, inflight_bytes: u64, waiting: bool) {
        let least = &mut self.least_us[bytes.max(1).ilog2() as usize];
        *least = us.max(1).min(*least);
        if !waiting {
            self.window = Window::default();
            return;
        }
        let w = &mut self.window;
        w.ops += 1;
        w.us += us.max(1);
        w.least_us += *least;
        w.inflight_bytes += inflight_bytes;
        if w.ops == WINDOW {
            self.judge();
        }
    }

    fn judge(&mut self) {
        let w = std::mem::take(&mut self.window);
        let inflight = w.inflight_bytes / w.ops;
        let busy_with = u128::from(inflight) * u128::from(w.least_us) / u128::from(w.us);
        let excess = inflight.saturating_sub(busy_with as u64);
        let step = self.bytes / 8;
        if excess > EXCESS_HIGH_BYTES {
            self.bytes = (self.bytes - step).max(FLOOR_BYTES.min(self.bytes_max));
        } else if excess < EXCESS_LOW_BYTES {
            self.bytes = (self.bytes + step).min(self.bytes_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What the limit comes to before a device that works on `busy_bytes` at once, each MiB for `us`, and lets the rest wait.
    #[track_caller]
    fn check(bytes_max: u64, busy_bytes: u64, us: u64, want: std::ops::RangeInclusive<u64>) {
        let mut limit = Inflight::new(bytes_max);
        limit.done(MIB, us, MIB, false);
        for _ in 0..WINDOW * 100 {
            let inflight = limit.bytes();
            limit.done(
                MIB,
                us * inflight.max(busy_bytes) / busy_bytes,
                inflight,
                true,
            );
        }
        assert!(want.contains(&limit.bytes()), "{} bytes", limit.bytes());
    }

    #[test]
    fn one_drive_gets_little_and_many_behind_one_name_get_much() {
        check(64 * MIB, MIB, 400, 4 * MIB..=6 * MIB);
        check(64 * MIB, 24 * MIB, 400, 25 * MIB..=29 * MIB);
        check(64 * MIB, 1024 * MIB, 400, 64 * MIB..=64 * MIB);
    }

    #[test]
    fn the_setting_is_never_passed() {
        check(10_000, MIB, 400, 10_000..=10_000);
        check(8 * MIB, 1024 * MIB, 400, 8 * MIB..=8 * MIB);
    }

    #[test]
    fn what_is_not_limited_does_not_move_the_limit() {
        let mut limit = Inflight::new(64 * MIB);
        for us in 0..WINDOW * 20 {
            limit.done(4096, us, 32 * 4096, false);
        }
        assert_eq!(limit.bytes(), FLOOR_BYTES);
    }

    #[test]
    fn a_few_go_together_however_large() {
        let limit = Inflight::new(64 * MIB);
        assert!(limit.admits(128 * MIB, 0, 0), "alone");
        assert!(limit.admits(16 * MIB, 3, 48 * MIB), "the fourth");
        assert!(!limit.admits(4 * MIB, 4, 16 * MIB), "the fifth");
        assert!(!limit.admits(32 * MIB, 1, 48 * MIB), "over the setting");
        assert!(limit.admits(4096, 200, 800 << 10), "small ones");
    }
}
