// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Waiting for blocks that somebody is still writing, without asking the node.
//!
//! A ticket is one word in memory that the node writes and its clients read:
//! `[state: 8][generation: 24][blocks ready: 32]`, state in the top byte.

use std::sync::Arc;
use std::time::Duration;

use super::session::Session;

/// Bits of a ticket's generation.
pub(crate) const GENERATION_MASK: u32 = 0xff_ffff;
const WAITING: u64 = 1;
const DONE: u64 = 2;

/// How far a ticket has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketState {
    /// Further blocks may become ready.
    Waiting {
        /// Blocks that the lease pins by now.
        ready: u32,
    },
    /// No further block will become ready.
    Done {
        /// Blocks that the lease pins.
        ready: u32,
    },
    /// The ticket's lease has ended, or the node has.
    Gone,
}

/// The word of a ticket that waits or is done.
pub(crate) fn encode(done: bool, generation: u32, ready: u32) -> u64 {
    let state = if done { DONE } else { WAITING };
    state << 56 | u64::from(generation & GENERATION_MASK) << 32 | u64::from(ready)
}

pub(crate) fn decode(word: u64, generation: u32) -> TicketState {
    let ready = word as u32;
    if (word >> 32) as u32 & GENERATION_MASK != generation & GENERATION_MASK {
        return TicketState::Gone;
    }
    match word >> 56 {
        WAITING => TicketState::Waiting { ready },
        DONE => TicketState::Done { ready },
        _ => TicketState::Gone,
    }
}

/// A word to look at.
#[derive(Debug, Clone)]
pub struct Ticket {
    session: Arc<Session>,
    index: u32,
    generation: u32,
}

impl Ticket {
    pub(crate) fn new(session: Arc<Session>, index: u32, generation: u32) -> Self {
        Self {
            session,
            index,
            generation,
        }
    }

    /// How far it is: one load from shared memory.
    #[must_use]
    pub fn poll(&self) -> TicketState {
        match self.session.tickets.word(u64::from(self.index) * 8) {
            Ok(word) => decode(word.load(), self.generation),
            Err(_) => TicketState::Gone,
        }
    }

    /// Waits until it is no longer [`TicketState::Waiting`], or `timeout` has passed; looks every
    /// 50 us at first and more and more seldom, at least every 2 ms.
    pub async fn wait(&self, timeout: Duration) -> TicketState {
        let mut pause = Duration::from_micros(50);
        let wait = async {
            loop {
                match self.poll() {
                    TicketState::Waiting { .. } if self.session.is_open() => {
                        tokio::time::sleep(pause).await;
                    }
                    // A node that is gone says nothing any more.
                    TicketState::Waiting { .. } => return TicketState::Gone,
                    ended => return ended,
                }
                pause = (pause * 2).min(Duration::from_millis(2));
            }
        };
        let ended = tokio::time::timeout(timeout, wait).await;
        ended.unwrap_or_else(|_| self.poll())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_word_says_what_was_put_in(done: bool, generation in 0..=GENERATION_MASK, ready: u32, other in 0..=GENERATION_MASK) {
            let word = encode(done, generation, ready);
            let want = if done { TicketState::Done { ready } } else { TicketState::Waiting { ready } };
            prop_assert_eq!(decode(word, generation), want);
            prop_assert_eq!(decode(word, other) == TicketState::Gone, other != generation);
            prop_assert_eq!(decode(0, generation), TicketState::Gone);
        }
    }
}
