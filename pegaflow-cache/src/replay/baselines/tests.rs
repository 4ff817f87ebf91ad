// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::replay::trace::{Request, TraceReader};
use std::path::Path;

/// Requests with the prefix hits each must have.
fn check(mut cache: impl Simulated, script: &[(&[u64], usize)]) {
    for (i, (blocks, hits)) in script.iter().enumerate() {
        assert_eq!(cache.request(blocks), *hits, "request {i} of {script:?}");
    }
}

#[test]
fn s3_fifo_by_hand() {
    // A tenth of 10 is 1: what is new leaves first, what was used twice there goes on.
    let fill: &[u64] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    check(
        S3Fifo::new(10),
        &[
            (fill, 0),
            (&[1], 1),
            (&[1], 1),
            (&[11], 0),
            (&[1], 1),
            (&[2], 0),
        ],
    );
    // 2 left the small queue for 11, so it comes back into the main one, where fresh blocks do not push it out.
    let scan: Vec<u64> = (20..60).collect();
    check(
        S3Fifo::new(10),
        &[
            (fill, 0),
            (&[11], 0),
            (&[1], 0),
            (&scan, 0),
            (&[1], 1),
            (&[9], 0),
        ],
    );
    check(S3Fifo::new(0), &[(&[1], 0), (&[1], 0)]);
}

#[test]
fn sieve_by_hand() {
    // The hand passes 1, which was used, and takes 2; then goes on with 3.
    check(
        Sieve::new(3),
        &[
            (&[1, 2, 3], 0),
            (&[1], 1),
            (&[4], 0),
            (&[1], 1),
            (&[5], 0),
            (&[3], 0),
            (&[1], 1),
        ],
    );
    check(Sieve::new(0), &[(&[1], 0), (&[1], 0)]);
}

#[test]
fn arc_by_hand() {
    // 1 was used again, so a scan of new blocks does not push it out.
    let scan: Vec<u64> = (10..30).collect();
    check(Arc::new(4), &[(&[1], 0), (&[1], 1), (&scan, 0), (&[1], 1)]);
    // Without a second use it is gone; its name is not, so it comes back as used again.
    check(Arc::new(2), &[(&[1], 0), (&[2], 0), (&[3], 0), (&[1], 0)]);
    check(Arc::new(0), &[(&[1], 0), (&[1], 0)]);
}

#[test]
fn optimum_by_hand() {
    let hits = |requests: &[&[u64]], capacity| optimum_hits(requests.iter().copied(), capacity);
    // 2 is never used again, so it makes room for 3; LRU would give up 1.
    assert_eq!(hits(&[&[1], &[2], &[3], &[1], &[3]], 2), 2);
    // The deeper of two blocks with the same next use leaves.
    assert_eq!(hits(&[&[1, 2], &[3], &[1, 2], &[3]], 2), 1 + 1);
    assert_eq!(hits(&[&[1, 2], &[1, 2]], 0), 0);
    assert_eq!(
        hits(&[&[1, 2], &[9, 2], &[1, 2]], 9),
        2,
        "without its prefix a block is no hit"
    );
}

#[test]
fn reproduces_the_published_rows_of_the_conversation_trace() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/traces/conversation_trace.jsonl.gz");
    if !path.exists() {
        eprintln!("SKIPPED: {} is not there", path.display());
        return;
    }
    let trace: Vec<Request> = TraceReader::open(&path)
        .expect("it exists")
        .collect::<Result<_, _>>()
        .expect("a valid trace");
    let references: usize = trace.iter().map(|r| r.blocks.len()).sum();
    let share = |hits: u64| hits as f64 / references as f64;
    let simulate = |mut cache: Box<dyn Simulated>| {
        share(trace.iter().map(|r| cache.request(&r.blocks) as u64).sum())
    };
    // Others' S3-FIFO and ARC differ in details, such as the order in which a request's blocks are used.
    let near = |got: f64, published: f64| (got - published).abs() < 0.005;
    let capacity = 5_483;
    let optimum = share(optimum_hits(
        trace.iter().map(|r| r.blocks.as_slice()),
        capacity,
    ));
    assert!((optimum - 0.3479).abs() < 1e-4, "{optimum}");
    let s3 = simulate(Box::new(S3Fifo::new(capacity)));
    assert!(near(s3, 0.1526), "{s3}");
    let arc = simulate(Box::new(Arc::new(capacity)));
    assert!(near(arc, 0.1362), "{arc}");
}
