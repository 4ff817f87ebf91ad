// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use std::collections::HashMap;

use super::super::facts::TraceFacts;
use super::*;

fn only(agent_share: f64, seed: u64) -> Synth {
    Synth::new(SynthSettings {
        seed,
        agent_share,
        ..SynthSettings::default()
    })
}

fn quantile(values: &mut [u64], q: f64) -> f64 {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * q) as usize] as f64
}

fn check(what: &str, got: f64, published: f64, bound: f64) {
    eprintln!("{what}: {got:.4}, published {published}");
    assert!(
        (got / published - 1.0).abs() <= bound,
        "{what}: {got}, published {published}"
    );
}

/// Requests of the first `sessions` sessions that ended, so that long ones are not cut short.
fn ended(synth: Synth, sessions: u64) -> Vec<SynthRequest> {
    synth
        .take(sessions as usize * 60)
        .filter(|r| r.session < sessions)
        .collect()
}

#[test]
fn agents_have_the_published_statistics() {
    let requests = ended(only(1.0, 8), 400);
    let facts = TraceFacts::of(requests.iter().map(|r| &r.request));
    let reused = facts.reusable_references as f64 * 512.0 / facts.input_tokens as f64;
    let mut last: HashMap<u64, (u64, u64)> = HashMap::new();
    let (mut added, mut idle) = (vec![], vec![]);
    for r in &requests {
        let tokens = r.request.input_tokens;
        if let Some((_, before)) = last.insert(r.session, (r.turn + 1, tokens)) {
            added.push(tokens - before);
            idle.push(r.idle_ms);
        }
    }
    let mut turns: Vec<u64> = last.values().map(|(turns, _)| *turns).collect();
    check("share of tokens reused", reused, 0.94, 0.01);
    check("turns, median", quantile(&mut turns, 0.5), 33.0, 0.07);
    check(
        "tokens per turn",
        added.iter().sum::<u64>() as f64 / added.len() as f64,
        2_242.0,
        0.05,
    );
    check("idle, median ms", quantile(&mut idle, 0.5), 5_000.0, 0.05);
    check("idle, p99 ms", quantile(&mut idle, 0.99), 81_000.0, 0.15);
}

#[test]
fn chat_is_like_the_conversation_trace() {
    let requests: Vec<_> = only(0.0, 8).take(12_031).collect();
    let facts = TraceFacts::of(requests.iter().map(|r| &r.request));
    check(
        "input tokens, mean",
        facts.input_tokens_mean(),
        12_035.0,
        0.05,
    );
    check(
        "output tokens, mean",
        facts.output_tokens_mean(),
        343.0,
        0.05,
    );
    check(
        "references an infinite cache answers",
        facts.reusable_share(),
        0.3664,
        0.08,
    );
}

#[test]
fn the_mix_has_the_asked_rate_and_share() {
    let requests: Vec<_> = Synth::new(SynthSettings::default()).take(60_000).collect();
    let half = &requests[30_000..];
    let ms = half[half.len() - 1].request.arrival_ms - half[0].request.arrival_ms;
    check(
        "requests per s",
        half.len() as f64 * 1000.0 / ms as f64,
        4.0,
        0.15,
    );
    let agents = half.iter().filter(|r| r.kind == Kind::Agent).count();
    check(
        "share of agents",
        agents as f64 / half.len() as f64,
        0.5,
        0.15,
    );
    let in_order = |w: &[SynthRequest]| w[0].request.arrival_ms <= w[1].request.arrival_ms;
    assert!(requests.windows(2).all(in_order));
}

#[test]
fn a_seed_is_a_workload() {
    let take = |seed| only(0.5, seed).take(500).collect::<Vec<_>>();
    assert_eq!(take(3), take(3));
    assert_ne!(take(3), take(4));
}

#[test]
fn prompts_have_the_form_of_a_trace() {
    for r in only(0.5, 5).take(5_000) {
        let blocks = &r.request.blocks;
        assert_eq!(blocks.len() as u64, r.request.input_tokens.div_ceil(512));
        let mut unique = blocks.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), blocks.len(), "a block comes once in a prompt");
    }
}
