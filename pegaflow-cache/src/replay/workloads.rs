// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Workloads that press on eviction, each in another way: seeded, and only block ids, no tokens.
//!
//! They are caricatures on purpose: long loops that no cache holds, popular documents, popularity that drifts, scans
//! among conversations. For a likeness of real traffic see [`synth`](super::synth).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::dice::Dice;

/// What kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Tool loops of agents: many turns, seconds apart.
    Agents,
    /// Conversations: few turns, minutes apart.
    Chat,
    /// Questions to documents, some much more popular than others.
    Rag,
    /// The same documents over and over, in turn.
    Loop,
    /// Documents whose popularity moves on.
    Drift,
    /// Agents, conversations, and long prompts that nobody repeats.
    Mix,
}

impl Workload {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Agents, "agents"),
        (Self::Chat, "chat"),
        (Self::Rag, "rag"),
        (Self::Loop, "loop"),
        (Self::Drift, "drift"),
        (Self::Mix, "mix"),
    ];

    /// Mean time between two sessions that begin, in seconds.
    fn session_gap_s(self) -> f64 {
        match self {
            Self::Agents => 5.0,
            Self::Mix => 0.5,
            _ => 1.0 / 3.0,
        }
    }
}

const DOCUMENTS: u64 = 400;
const SYSTEM_PROMPTS: u64 = 20;
/// Documents that are in demand at a time, sessions until demand moves on, and by how far.
const DRIFT: (u64, u64, u64) = (100, 2000, 90);
/// A session ends at this length, in blocks.
const PROMPT_BLOCKS_MAX: usize = 400;

struct Session {
    blocks: Vec<u64>,
    turns: u64,
    is_agent: bool,
}

struct Maker {
    dice: Dice,
    next_block: u64,
    prompts: Vec<Vec<u64>>,
    documents: Vec<Vec<u64>>,
    sessions: u64,
}

/// The first `requests` requests, each as its block ids.
pub fn requests(workload: Workload, seed: u64, requests: usize) -> Vec<Vec<u64>> {
    let mut maker = Maker::new(seed);
    let mut turns: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut open: std::collections::HashMap<u64, Session> = std::collections::HashMap::new();
    let mut made = Vec::with_capacity(requests);
    let (mut now_s, mut order) = (0.0, 0);
    while made.len() < requests {
        now_s += maker.dice.exponential(workload.session_gap_s());
        let arrived_ms = (now_s * 1e3) as u64;
        open.insert(order, maker.session(workload));
        turns.push(Reverse((arrived_ms, order)));
        order += 1;
        while let Some(Reverse((at_ms, id))) = turns.peek().copied()
            && at_ms <= arrived_ms
            && made.len() < requests
        {
            turns.pop();
            let Some(mut session) = open.remove(&id) else {
                continue;
            };
            made.push(session.blocks.clone());
            if let Some(pause_s) = maker.next_turn(&mut session) {
                open.insert(id, session);
                turns.push(Reverse((at_ms + (pause_s * 1e3) as u64, id)));
            }
        }
    }
    made
}

impl Maker {
    fn new(seed: u64) -> Self {
        let mut new = Self {
            dice: Dice::new(seed),
            next_block: 0,
            prompts: vec![],
            documents: vec![],
            sessions: 0,
        };
        for _ in 0..SYSTEM_PROMPTS {
            let blocks = 2 << new.dice.below(4);
            let prompt = new.fresh(blocks);
            new.prompts.push(prompt);
        }
        for _ in 0..DOCUMENTS {
            let blocks = 10 + new.dice.below(51);
            let document = new.fresh(blocks);
            new.documents.push(document);
        }
        new
    }

    fn fresh(&mut self, blocks: u64) -> Vec<u64> {
        self.next_block += blocks;
        (self.next_block - blocks..self.next_block).collect()
    }

    fn session(&mut self, workload: Workload) -> Session {
        let number = self.sessions;
        self.sessions += 1;
        match workload {
            Workload::Agents => self.agent(33.0),
            Workload::Chat => self.chat(),
            Workload::Rag => {
                let document = self.dice.zipf(DOCUMENTS, 1.0);
                let again = u64::from(self.dice.chance(0.3));
                let mut session = self.question(document, 1, 4, 1 + again);
                session.blocks.splice(0..0, self.prompts[0].iter().copied());
                session
            }
            Workload::Loop => self.question(number % DOCUMENTS, 1, 1, 1),
            Workload::Drift => {
                let (wide, sessions, step) = DRIFT;
                let document = self.dice.zipf(wide, 1.0) + number / sessions * step;
                let turns = 1 + self.dice.exponential(1.0 / 0.7) as u64;
                self.question(document % DOCUMENTS, 1, 10, turns)
            }
            Workload::Mix => match self.dice.unit() {
                x if x < 0.1 => self.agent(20.0),
                x if x < 0.3 => {
                    let blocks = 20 + self.dice.below(181);
                    let blocks = self.fresh(blocks);
                    Session {
                        blocks,
                        turns: 1,
                        is_agent: false,
                    }
                }
                _ => self.chat(),
            },
        }
    }

    fn prompt(&mut self) -> Vec<u64> {
        let which = self.dice.zipf(SYSTEM_PROMPTS, 1.0);
        self.prompts[which as usize].clone()
    }

    fn agent(&mut self, turns_median: f64) -> Session {
        let mut blocks = self.prompt();
        let first = 4 + self.dice.below(37);
        blocks.extend(self.fresh(first));
        let turns = self.dice.log_normal(turns_median, 1.0).max(1.0) as u64;
        Session {
            blocks,
            turns,
            is_agent: true,
        }
    }

    fn chat(&mut self) -> Session {
        let mut blocks = self.prompt();
        let first = self.dice.log_normal(8.0, 1.2).max(1.0) as u64;
        blocks.extend(self.fresh(first));
        let turns = 1 + self.dice.exponential(2.0) as u64;
        Session {
            blocks,
            turns,
            is_agent: false,
        }
    }

    fn question(&mut self, document: u64, least: u64, most: u64, turns: u64) -> Session {
        let mut blocks = self.documents[document as usize].clone();
        let own = least + self.dice.below(most - least + 1);
        blocks.extend(self.fresh(own));
        Session {
            blocks,
            turns,
            is_agent: false,
        }
    }

    /// Lets a session grow, and says after how many seconds it goes on; none if it is over.
    fn next_turn(&mut self, session: &mut Session) -> Option<f64> {
        session.turns -= 1;
        if session.turns == 0 || session.blocks.len() >= PROMPT_BLOCKS_MAX {
            return None;
        }
        let added = match session.is_agent {
            true => 2 + self.dice.below(7),
            false => 1 + self.dice.below(6),
        };
        session.blocks.extend(self.fresh(added));
        Some(match session.is_agent {
            true => self.dice.log_normal(5.0, 1.2) + 5.0,
            false => self.dice.log_normal(100.0, 0.8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_everything_and_every_request_is_a_prefix_once() {
        for (workload, name) in Workload::ALL {
            let made = requests(workload, 7, 500);
            assert_eq!(made, requests(workload, 7, 500), "{name}");
            assert_ne!(made, requests(workload, 8, 500), "{name}");
            assert_eq!(made.len(), 500);
            for blocks in &made {
                let mut seen = blocks.clone();
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(
                    seen.len(),
                    blocks.len(),
                    "{name}: a block twice in one request"
                );
            }
        }
    }

    #[test]
    fn a_loop_comes_back_to_every_document_in_turn() {
        let made = requests(Workload::Loop, 1, 801);
        let documents: Vec<u64> = made.iter().map(|blocks| blocks[0]).collect();
        assert_eq!(documents[..400], documents[400..800]);
        assert_eq!(documents[0], documents[800]);
    }
}
