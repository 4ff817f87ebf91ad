// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What kinds of sessions a synthetic workload has, in published numbers.

use serde::{Deserialize, Serialize};

use super::super::dice::Dice;

/// A log-normal quantity, cut to a range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Half of the values are below.
    pub median: f64,
    /// Standard deviation of the logarithm; 0 makes it constant.
    pub sigma: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// Median and sigma, with values from `min` to `max`.
    pub const fn new(median: f64, sigma: f64, min: f64, max: f64) -> Self {
        Self {
            median,
            sigma,
            min,
            max,
        }
    }

    pub(super) fn draw(&self, dice: &mut Dice) -> u64 {
        dice.log_normal(self.median, self.sigma)
            .clamp(self.min, self.max) as u64
    }
}

/// How sessions of one kind behave. All lengths in tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Distinct system prompts; sessions share them, the first ones most often.
    pub system_prompts: u64,
    /// Zipf exponent of that popularity.
    pub system_skew: f64,
    /// Length of a system prompt.
    pub system_tokens: Spread,
    /// Requests of a session.
    pub turns: Spread,
    /// What the first request brings beside the system prompt.
    pub first_tokens: Spread,
    /// What a later request adds beside the output before it: a question, or a tool's result.
    pub added_tokens: Spread,
    /// Tokens generated per request.
    pub output_tokens: Spread,
    /// Pause between an answer and the next request, milliseconds.
    pub idle_ms: Spread,
    /// Chance that a request first rewrites the end of its history (edited, trimmed or summarised), so
    /// that only a random share of it, from the start, can be reused.
    pub rewrite_chance: f64,
    /// A session ends before its prompt grows past this.
    pub context_tokens_max: u64,
}

impl Profile {
    /// Tool loops of coding agents. Published: 94 % of the tokens reused, 33 turns in the median,
    /// +2,242 tokens a turn, 5 s idle in the median and 81 s at the 99th percentile.
    pub fn agent() -> Self {
        Self {
            system_prompts: 8,
            system_skew: 1.0,
            system_tokens: Spread::new(4_000.0, 0.4, 512.0, 16_384.0),
            turns: Spread::new(33.0, 0.5, 2.0, 150.0),
            first_tokens: Spread::new(1_500.0, 0.8, 50.0, 16_384.0),
            added_tokens: Spread::new(1_000.0, 1.2, 20.0, 32_768.0),
            output_tokens: Spread::new(105.0, 1.1, 1.0, 4_096.0),
            idle_ms: Spread::new(5_000.0, IDLE_SIGMA, 50.0, 600_000.0),
            rewrite_chance: 0.03,
            context_tokens_max: 200_000,
        }
    }

    /// Chat like the published conversation trace: mean prompt 12,035 tokens, mean answer 343, and 37 %
    /// of the blocks reusable.
    pub fn chat() -> Self {
        Self {
            system_prompts: 4,
            system_skew: 2.0,
            system_tokens: Spread::new(700.0, 0.1, 512.0, 1_023.0),
            turns: Spread::new(1.3, 0.75, 1.0, 30.0),
            first_tokens: Spread::new(5_050.0, 1.2, 50.0, 120_000.0),
            added_tokens: Spread::new(400.0, 1.5, 5.0, 30_000.0),
            output_tokens: Spread::new(300.0, 0.55, 1.0, 2_000.0),
            idle_ms: Spread::new(40_000.0, 1.0, 1_000.0, 1_800_000.0),
            rewrite_chance: 0.1,
            context_tokens_max: 126_000,
        }
    }
}

// ln(81 s / 5 s) over the 99th percentile of the standard normal.
const IDLE_SIGMA: f64 = 2.785 / 2.326;
