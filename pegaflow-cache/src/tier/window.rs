// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How many bytes are asked of a drive at once: few at first, twice as many with each answer.
//!
//! A drive that is asked for a whole prefix at once serves all of it side by side, so its first block
//! comes late. So an idle drive is given little, and more as it answers. A bound also keeps what waits
//! where it can be taken back without asking the drive.
//!
//! Invariant: something may always be asked of an idle drive.

/// What an idle drive is given: a second read beside the first would take half of its speed.
const START_BYTES: u64 = 1 << 20;

/// The bytes that may be with the drive.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    bytes: u64,
    bytes_max: u64,
    with_drive: u64,
}

impl Window {
    /// At most `bytes_max` bytes at once, or one block.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes: START_BYTES.min(bytes_max),
            bytes_max,
            with_drive: 0,
        }
    }

    /// Bytes that are with the drive.
    #[must_use]
    pub fn with_drive(&self) -> u64 {
        self.with_drive
    }

    /// Books a read of `bytes` bytes if there is room for it.
    pub fn ask(&mut self, bytes: u64) -> bool {
        let wanted = self.with_drive.saturating_add(bytes);
        let room = self.with_drive == 0 || wanted <= self.bytes;
        if room {
            self.with_drive = wanted;
        }
        room
    }

    /// A read is over. `more`: something else waits for the drive.
    pub fn answered(&mut self, bytes: u64, more: bool) {
        self.with_drive -= bytes;
        self.bytes = match self.with_drive > 0 || more {
            true => self.bytes.saturating_add(bytes).min(self.bytes_max),
            false => START_BYTES.min(self.bytes_max),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn fill(window: &mut Window) -> u64 {
        (0..).take_while(|_| window.ask(MIB)).count() as u64
    }

    #[test]
    fn it_doubles_with_each_round_of_answers_and_starts_anew_when_idle() {
        let mut window = Window::new(13 * MIB);
        let rounds: Vec<_> = (0..5)
            .map(|_| {
                let asked = fill(&mut window);
                (0..asked).for_each(|_| window.answered(MIB, true));
                asked
            })
            .collect();
        assert_eq!(rounds, [1, 2, 4, 8, 13]);
        assert!(window.ask(MIB));
        window.answered(MIB, false);
        assert_eq!(fill(&mut window), 1);
    }

    proptest! {
        #[test]
        fn an_idle_drive_is_always_asked(blocks in prop::collection::vec(1u64..1 << 40, 1..50), max in 1u64..1 << 30) {
            let mut window = Window::new(max);
            for bytes in blocks {
                prop_assert!(window.ask(bytes));
                prop_assert!(!window.ask(max));
                window.answered(bytes, true);
                prop_assert_eq!(window.with_drive(), 0);
            }
        }
    }
}
