// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Whose fetch is next: lookups take turns, a piece each, so that a short one does not wait for a
//! long one that came before it.
//!
//! A lookup that has had nothing yet comes sooner than its turn: its first blocks are what an engine
//! can begin with. Such first pieces and the others alternate, so a flood of new lookups halves the
//! speed of those before it and does not stop them.
//!
//! Invariant: a line is in one of the two queues, or has its turn, exactly as long as it has items;
//! within a line the order stays.

use std::collections::{HashMap, VecDeque};

use crate::core::TicketId;

/// Bytes a line gets in one turn.
const PIECE_BYTES: i64 = 2 << 20;

#[derive(Debug)]
struct Line<T> {
    items: VecDeque<(T, u64)>,
    /// Bytes it may still take. Below zero after an item that is larger than a piece.
    credit: i64,
}

/// Items of several lines.
#[derive(Debug)]
pub struct Turns<T> {
    lines: HashMap<TicketId, Line<T>>,
    /// Lines that have had nothing.
    fresh: VecDeque<TicketId>,
    others: VecDeque<TicketId>,
    turn: Option<TicketId>,
    /// Whether a fresh line is next.
    fresh_next: bool,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            lines: HashMap::new(),
            fresh: VecDeque::new(),
            others: VecDeque::new(),
            turn: None,
            fresh_next: true,
        }
    }
}

impl<T: Copy> Turns<T> {
    /// Puts an item of `bytes` bytes at the end of a line. `fresh`: the line has had nothing yet.
    pub fn push(&mut self, line: TicketId, item: T, bytes: u64, fresh: bool) {
        let known = self.lines.entry(line).or_insert_with(|| {
            match fresh {
                true => self.fresh.push_back(line),
                false => self.others.push_back(line),
            }
            Line {
                items: VecDeque::new(),
                credit: 0,
            }
        });
        known.items.push_back((item, bytes));
    }

    /// Items that wait in a line.
    #[must_use]
    pub fn len_of(&self, line: TicketId) -> usize {
        self.lines.get(&line).map_or(0, |line| line.items.len())
    }

    /// The item whose turn it is.
    pub fn front(&mut self) -> Option<T> {
        loop {
            let turn = match self.turn {
                Some(turn) => turn,
                None => self.next_line()?,
            };
            let line = self.lines.get(&turn)?;
            if line.credit > 0 {
                return line.items.front().map(|(item, _)| *item);
            }
            self.others.push_back(turn);
            self.turn = None;
        }
    }

    fn next_line(&mut self) -> Option<TicketId> {
        let fresh = self.fresh_next && !self.fresh.is_empty() || self.others.is_empty();
        let queue = match fresh {
            true => &mut self.fresh,
            false => &mut self.others,
        };
        let next = queue.pop_front()?;
        self.fresh_next = !fresh;
        self.turn = Some(next);
        let line = self.lines.get_mut(&next)?;
        line.credit = line.credit.saturating_add(PIECE_BYTES).min(PIECE_BYTES);
        Some(next)
    }

    /// Takes the item that [`front`](Self::front) named. `used`: it counts as part of the turn.
    pub fn pop(&mut self, used: bool) {
        let Some(turn) = self.turn else { return };
        let Some(line) = self.lines.get_mut(&turn) else {
            return;
        };
        if let Some((_, bytes)) = line.items.pop_front().filter(|_| used) {
            line.credit = line.credit.saturating_sub_unsigned(bytes);
        }
        if line.items.is_empty() {
            self.lines.remove(&turn);
            self.turn = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn drain(turns: &mut Turns<(char, u64)>, most: usize) -> String {
        let mut order = String::new();
        while let Some((line, _)) = turns.front().filter(|_| order.len() < most) {
            turns.pop(true);
            order.push(line);
        }
        order
    }

    fn push(turns: &mut Turns<(char, u64)>, line: char, items: u64, bytes: u64) {
        (0..items).for_each(|n| turns.push(TicketId(line.into()), (line, n), bytes, true));
    }

    #[test]
    fn a_short_lookup_overtakes_a_long_one() {
        let mut turns = Turns::default();
        push(&mut turns, 'a', 100, MIB);
        assert_eq!(drain(&mut turns, 5), "aaaaa");
        push(&mut turns, 'b', 3, MIB);
        push(&mut turns, 'c', 3, MIB);
        // What had its turn ends it; then first pieces and others alternate.
        assert_eq!(drain(&mut turns, 11), "abbaaccbaac");
    }

    #[test]
    fn turns_are_of_bytes_not_of_blocks() {
        let mut turns = Turns::default();
        push(&mut turns, 'a', 100, 8 * MIB);
        push(&mut turns, 'b', 100, 2 * MIB);
        let order = drain(&mut turns, 50);
        let bytes = |line, each| order.chars().filter(|c| *c == line).count() as u64 * each;
        let (a, b) = (bytes('a', 8 * MIB), bytes('b', 2 * MIB));
        assert!(a.abs_diff(b) <= 10 * MIB, "{a} {b}");
    }

    #[test]
    fn a_flood_of_new_lookups_takes_half() {
        let mut turns = Turns::default();
        push(&mut turns, 'a', 1000, 2 * MIB);
        drain(&mut turns, 1);
        let mut had = 0;
        for n in 0..200u64 {
            turns.push(TicketId(1000 + n), ('n', n), 2 * MIB, true);
            had += drain(&mut turns, 1).matches('a').count();
        }
        assert!((99..=101).contains(&had), "{had}");
    }

    proptest! {
        /// Everything comes out once, in the order of its line.
        #[test]
        fn nothing_is_lost_and_order_stays(
            pushes in prop::collection::vec((0u64..6, 1u64..8 * MIB, any::<bool>(), 0usize..4), 1..200),
        ) {
            let mut turns = Turns::default();
            let mut lines: HashMap<u64, VecDeque<usize>> = HashMap::new();
            let check = |turns: &mut Turns<(u64, usize)>, lines: &mut HashMap<u64, VecDeque<usize>>| {
                let (line, n) = turns.front()?;
                assert_eq!(turns.front(), Some((line, n)), "asking changes nothing");
                turns.pop(n % 3 != 0);
                assert_eq!(lines.get_mut(&line).and_then(VecDeque::pop_front), Some(n));
                Some(())
            };
            for (n, (line, bytes, fresh, pops)) in pushes.into_iter().enumerate() {
                turns.push(TicketId(line), (line, n), bytes, fresh);
                lines.entry(line).or_default().push_back(n);
                (0..pops).for_each(|_| _ = check(&mut turns, &mut lines));
                for (line, items) in &lines {
                    prop_assert_eq!(turns.len_of(TicketId(*line)), items.len());
                }
            }
            while check(&mut turns, &mut lines).is_some() {}
            prop_assert!(lines.values().all(VecDeque::is_empty));
        }
    }
}
