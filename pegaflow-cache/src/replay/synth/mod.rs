// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A synthetic multi-turn workload: seeded, endless, with the published statistics of real ones.
//!
//! Sessions arrive at random; each begins with a shared system prompt and then grows turn by turn, so that
//! every prompt starts with the one before it (unless the history was rewritten). Block ids follow the form
//! of public traces: one id per block of the prompt, the last block possibly not full and then never
//! equal to any other.
//!
//! Pure: the same settings give the same requests everywhere.

mod profile;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use serde::{Deserialize, Serialize};

pub use self::profile::{Profile, Spread};
use super::dice::Dice;
use super::trace::Request;

/// Settings of the synthetic workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SynthSettings {
    /// The whole workload follows from it.
    pub seed: u64,
    /// Tokens per block.
    pub block_tokens: u64,
    /// Requests per second of workload time, once the sessions have built up.
    pub requests_per_s: f64,
    /// Share of the requests that come from agents, 0 to 1; the rest is chat.
    pub agent_share: f64,
    /// Time to generate one token, milliseconds: the next turn comes after the answer.
    pub output_token_ms: f64,
    /// Most sessions open at once; over it no new ones begin.
    pub sessions_max: usize,
    /// How agents behave.
    pub agent: Profile,
    /// How chat users behave.
    pub chat: Profile,
}

impl Default for SynthSettings {
    fn default() -> Self {
        Self {
            seed: 1,
            block_tokens: 512,
            requests_per_s: 4.0,
            agent_share: 0.5,
            output_token_ms: 15.0,
            sessions_max: 100_000,
            agent: Profile::agent(),
            chat: Profile::chat(),
        }
    }
}

/// The kind of session a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An agent's tool loop.
    Agent,
    /// A chat.
    Chat,
}

/// One request and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthRequest {
    /// The request, as it would stand in a trace.
    pub request: Request,
    /// Session, counted from 0.
    pub session: u64,
    /// Turn of the session, from 0.
    pub turn: u64,
    /// Kind of the session.
    pub kind: Kind,
    /// Pause since the answer before, milliseconds (0 for turn 0).
    pub idle_ms: u64,
}

struct SystemPrompt {
    tokens: u64,
    blocks: Vec<u64>,
}

struct Session {
    id: u64,
    kind: Kind,
    turn: u64,
    turns: u64,
    tokens: u64,
    /// Ids of the full blocks of the prompt.
    full: Vec<u64>,
    idle_ms: u64,
}

/// What happens next: a session's turn, or a new session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Turn(u64),
    Arrival,
}

/// The endless sequence of requests, in order of arrival.
pub struct Synth {
    settings: SynthSettings,
    dice: Dice,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    sessions: HashMap<u64, Session>,
    sessions_begun: u64,
    next_block: u64,
    prompts: [Vec<SystemPrompt>; 2],
    arrival_gap_ms: f64,
    agent_chance: f64,
}

impl Synth {
    /// Starts at time 0 with no session open.
    pub fn new(mut settings: SynthSettings) -> Self {
        settings.block_tokens = settings.block_tokens.max(1);
        let mut dice = Dice::new(settings.seed);
        let mut next_block = 0;
        let prompts = [&settings.agent, &settings.chat].map(|profile| {
            system_prompts(profile, settings.block_tokens, &mut dice, &mut next_block)
        });
        let turns =
            [&settings.agent, &settings.chat].map(|profile| turns_mean(profile, settings.seed));
        let share = settings.agent_share.clamp(0.0, 1.0);
        let sessions_per_request = [share / turns[0], (1.0 - share) / turns[1]];
        let sessions_per_request_all = sessions_per_request[0] + sessions_per_request[1];
        Self {
            arrival_gap_ms: 1000.0 / (settings.requests_per_s.max(1e-6) * sessions_per_request_all),
            agent_chance: sessions_per_request[0] / sessions_per_request_all,
            events: BinaryHeap::from([Reverse((0, Event::Arrival))]),
            sessions: HashMap::new(),
            sessions_begun: 0,
            settings,
            dice,
            next_block,
            prompts,
        }
    }

    fn profile(&self, kind: Kind) -> &Profile {
        match kind {
            Kind::Agent => &self.settings.agent,
            Kind::Chat => &self.settings.chat,
        }
    }

    fn arrive(&mut self, now_ms: u64) {
        let gap = self.dice.exponential(self.arrival_gap_ms).max(1.0) as u64;
        self.events.push(Reverse((now_ms + gap, Event::Arrival)));
        if self.sessions.len() >= self.settings.sessions_max {
            return;
        }
        let kind = if self.dice.chance(self.agent_chance) {
            Kind::Agent
        } else {
            Kind::Chat
        };
        let profile = self.profile(kind).clone();
        let which = self.dice.zipf(profile.system_prompts, profile.system_skew);
        let prompt = &self.prompts[kind as usize][which as usize];
        let id = self.sessions_begun;
        let mut session = Session {
            id,
            kind,
            turn: 0,
            turns: profile.turns.draw(&mut self.dice).max(1),
            tokens: prompt.tokens,
            full: prompt.blocks.clone(),
            idle_ms: 0,
        };
        let first = profile.first_tokens.draw(&mut self.dice);
        self.grow(&mut session, first);
        self.sessions_begun += 1;
        self.sessions.insert(id, session);
        self.events.push(Reverse((now_ms, Event::Turn(id))));
    }

    fn grow(&mut self, session: &mut Session, tokens: u64) {
        session.tokens += tokens;
        for _ in session.full.len() as u64..session.tokens / self.settings.block_tokens {
            session.full.push(self.fresh_block());
        }
    }

    fn fresh_block(&mut self) -> u64 {
        self.next_block += 1;
        self.next_block - 1
    }

    fn take_turn(&mut self, now_ms: u64, mut session: Session) -> SynthRequest {
        let profile = self.profile(session.kind).clone();
        let output_tokens = profile.output_tokens.draw(&mut self.dice);
        let mut blocks = session.full.clone();
        if !session.tokens.is_multiple_of(self.settings.block_tokens) {
            blocks.push(self.fresh_block());
        }
        let made = SynthRequest {
            request: Request {
                arrival_ms: now_ms,
                input_tokens: session.tokens,
                output_tokens,
                blocks,
            },
            session: session.id,
            turn: session.turn,
            kind: session.kind,
            idle_ms: session.idle_ms,
        };
        self.prepare_next_turn(&mut session, &profile, output_tokens);
        if session.turn < session.turns && session.tokens <= profile.context_tokens_max {
            let answer_ms = (output_tokens as f64 * self.settings.output_token_ms) as u64;
            let next_ms = now_ms + answer_ms + session.idle_ms;
            self.events
                .push(Reverse((next_ms, Event::Turn(session.id))));
            self.sessions.insert(session.id, session);
        }
        made
    }

    fn prepare_next_turn(&mut self, session: &mut Session, profile: &Profile, output_tokens: u64) {
        let added = profile.added_tokens.draw(&mut self.dice);
        let tokens = session.tokens;
        if self.dice.chance(profile.rewrite_chance) {
            let kept = (tokens as f64 * self.dice.unit()) as u64;
            session
                .full
                .truncate((kept / self.settings.block_tokens) as usize);
        }
        self.grow(session, output_tokens + added);
        session.idle_ms = profile.idle_ms.draw(&mut self.dice);
        session.turn += 1;
    }
}

fn system_prompts(
    profile: &Profile,
    block_tokens: u64,
    dice: &mut Dice,
    next_block: &mut u64,
) -> Vec<SystemPrompt> {
    let prompt = |_| {
        let tokens = profile.system_tokens.draw(dice);
        let first = *next_block;
        *next_block += tokens / block_tokens;
        SystemPrompt {
            tokens,
            blocks: (first..*next_block).collect(),
        }
    };
    (0..profile.system_prompts.max(1)).map(prompt).collect()
}

// Mean turns of a session as drawn (cut and rounded), which has no closed form.
fn turns_mean(profile: &Profile, seed: u64) -> f64 {
    const DRAWS: u64 = 4_096;
    let mut dice = Dice::new(seed ^ 0x7475_726e);
    let sum: u64 = (0..DRAWS)
        .map(|_| profile.turns.draw(&mut dice).max(1))
        .sum();
    sum as f64 / DRAWS as f64
}

impl Iterator for Synth {
    type Item = SynthRequest;

    fn next(&mut self) -> Option<SynthRequest> {
        loop {
            let Reverse((now_ms, event)) = self.events.pop()?;
            match event {
                Event::Arrival => self.arrive(now_ms),
                Event::Turn(id) => {
                    let session = self.sessions.remove(&id)?;
                    return Some(self.take_turn(now_ms, session));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
