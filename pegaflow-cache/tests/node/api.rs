// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One script, two ways to the node: embedded and over the sockets.

use std::time::Duration;

use pegaflow_cache::client::{
    Client, ClientSettings, Hint, HintBlocks, Hinted, HybridLookup, Lookup, TicketState,
};
use pegaflow_cache::core::{Answer, GroupKeys, LookupMode};
use pegaflow_cache::{Error, ErrorKind};
use pegaflow_mem::Slot;
use pegaflow_meta::GroupId;

use crate::support::*;

macro_rules! both_ways {
    ($($script:ident;)*) => {
        mod embedded {
            use super::*;
            $(
                #[tokio::test]
                async fn $script() {
                    let node = pegaflow_cache::node::Node::start(&settings(8 << 20));
                    let client = Client::embedded(&node.expect("starts")).expect("opens");
                    super::$script(client).await;
                }
            )*
        }
        mod remote {
            use super::*;
            $(
                #[tokio::test]
                async fn $script() {
                    let served = Served::start(&settings(8 << 20));
                    super::$script(served.client().await).await;
                    served.stop().await;
                }
            )*
        }
    };
}

both_ways! {
    what_is_sealed_is_found;
    bytes_and_checksums_are_where_the_node_says;
    slots_of_several_workers_make_a_block;
    a_ticket_tells_when_blocks_are_ready;
    a_set_answers_for_each_key;
    a_hybrid_ticket_counts_tokens;
    hints_say_what_they_did;
    a_full_pool_refuses_and_goes_on;
    what_cannot_be_is_refused_with_a_reason;
    a_corrupt_block_is_dropped;
    room_for_the_next_save_is_made_while_nobody_waits;
    more_calls_at_once_than_connections_wait_their_turn;
}

async fn more_calls_at_once_than_connections_wait_their_turn(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..4);
    save(&client, &namespace, &keys).await;
    let calls = 8 * ClientSettings::default().connections_max;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..calls {
        let (client, namespace, keys) = (client.clone(), namespace.clone(), keys.clone());
        running.spawn(async move { ready(&client, &namespace, &keys).await });
    }
    // None has run into its deadline.
    assert_eq!(running.join_all().await, vec![4; calls as usize]);
}

async fn what_is_sealed_is_found(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..40);
    assert_eq!(ready(&client, &namespace, &keys).await, 0);
    assert_eq!(save(&client, &namespace, &keys[..30]).await, 30);
    let found = lookup(&client, &namespace, &keys).await;
    assert_eq!((found.blocks.len(), found.pending), (30, 0));
    client
        .release(&found.lease.expect("asked for"))
        .await
        .expect("held");
    assert_eq!(
        save(&client, &namespace, &keys).await,
        10,
        "only what is new"
    );
    assert_eq!(ready(&client, &namespace, &keys).await, 40);
    let other = client.register_namespace(layout(2, SHAPE, &[])).await;
    let other = other.expect("registers");
    assert_eq!(ready(&client, &other, &keys).await, 0, "another model");
    let stats = client.stats().await.expect("counts");
    assert_eq!((stats.blocks, stats.leases), (40, 0));
}

async fn bytes_and_checksums_are_where_the_node_says(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[1])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..3);
    let reservation = reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys).await;
    {
        let _copy = reservation.begin_copy().expect("the session is open");
        for (n, answer) in reservation.answers.iter().enumerate() {
            let Answer::Place { place, .. } = answer else {
                panic!("{answer:?}")
            };
            let pool = reservation.session().pools().of(*place).expect("a pool");
            pool.data
                .copy_in(place.offset(), &[n as u8 + 1; 16384])
                .expect("inside");
        }
    }
    let items = items(&reservation);
    client
        .seal(&reservation, &items, &sums(&items, 8))
        .await
        .expect("seals");
    let found = lookup(&client, &namespace, &keys).await;
    for (n, block) in found.blocks.iter().enumerate() {
        let pool = found.session.pools().of(block.place).expect("a pool");
        let mut bytes = [0; 16384];
        pool.data
            .copy_out(block.place.offset(), &mut bytes)
            .expect("inside");
        assert_eq!(bytes, [n as u8 + 1; 16384]);
        let kept = pool.checksums(block.place.offset(), keys[n], block.generation);
        assert_eq!(kept, Some(sums(&[n as u32], 8)));
        let wrong = pool.checksums(block.place.offset(), keys[n], block.generation + 1);
        assert_eq!(wrong, None);
    }
}

async fn slots_of_several_workers_make_a_block(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[1])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..2);
    for layers in [0..1, 1..2] {
        for heads in [0..2, 2..4] {
            assert_eq!(
                ready(&client, &namespace, &keys).await,
                0,
                "not covered yet"
            );
            let layers = layers.clone();
            let slot = Slot { layers, heads };
            let part = reserve(&client, &namespace, &slot, &keys).await;
            let mine = items(&part);
            assert_eq!(mine, [0, 1]);
            let again = reserve(&client, &namespace, &slot, &keys).await;
            assert_eq!(again.answers, [Answer::InFlight; 2], "nobody copies twice");
            let number = u64::from(slot.layers.start * 4 + slot.heads.start);
            let sums = [number, number + 1, number + 100, number + 101];
            client.seal(&part, &mine, &sums).await.expect("seals");
        }
    }
    let found = lookup(&client, &namespace, &keys).await;
    assert_eq!(found.blocks.len(), 2);
    for (block, more) in found.blocks.iter().zip([0, 100]) {
        let pool = found.session.pools().of(block.place).expect("a pool");
        let key = keys[block.key as usize];
        let kept = pool.checksums(block.place.offset(), key, block.generation);
        let want: Vec<u64> = (0..8).map(|n| n + more).collect();
        assert_eq!(kept, Some(want), "each worker's where they belong");
    }
}

async fn a_ticket_tells_when_blocks_are_ready(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..6);
    save(&client, &namespace, &keys[..2]).await;
    let writing = reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys[..5]).await;
    let lookup = Lookup::prefix(&namespace, GROUP, &keys).with_ticket();
    let found = client.lookup(&lookup).await.expect("looks up");
    assert_eq!((found.blocks.len(), found.pending), (2, 3));
    let ticket = found.ticket.expect("something is being written");
    assert_eq!(ticket.poll(), TicketState::Waiting { ready: 2 });
    client
        .seal(&writing, &[2], &sums(&[2], 4))
        .await
        .expect("seals");
    assert_eq!(ticket.poll(), TicketState::Waiting { ready: 3 });
    client
        .seal(&writing, &[3, 4], &sums(&[3, 4], 4))
        .await
        .expect("seals");
    let done = ticket.wait(Duration::from_secs(5)).await;
    assert_eq!(done, TicketState::Done { ready: 5 });
    let lease = found.lease.expect("a ticket has a lease");
    let all = client.claim(&lease).await.expect("held");
    assert_eq!(all.blocks.len(), 5);
    assert_eq!(all.blocks[..2], found.blocks);
    client.release(&lease).await.expect("held");
    assert_eq!(ticket.poll(), TicketState::Gone);
    let nothing = client
        .lookup(&Lookup::prefix(&namespace, GROUP, &keys).with_ticket())
        .await;
    assert!(
        nothing.expect("looks up").ticket.is_none(),
        "nothing to wait for"
    );
}

async fn a_set_answers_for_each_key(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..10);
    save(&client, &namespace, &keys[3..5]).await;
    save(&client, &namespace, &keys[8..9]).await;
    let lookup = Lookup {
        mode: LookupMode::Set,
        ..Lookup::prefix(&namespace, GROUP, &keys)
    };
    let found = client.lookup(&lookup).await.expect("looks up");
    let which: Vec<u32> = found.blocks.iter().map(|block| block.key).collect();
    assert_eq!(which, [3, 4, 8]);
}

async fn a_hybrid_ticket_counts_tokens(client: Client) {
    let namespace = client.register_namespace(two_groups(1)).await;
    let namespace = namespace.expect("registers");
    let [full, window] = [0, 1].map(|group| {
        let key = |n: u32| namespace.key(GroupId(group), &n.to_le_bytes());
        (0..4).map(key).collect::<Vec<_>>()
    });
    assert_eq!(save_in(&client, &namespace, GroupId(0), &full).await, 4);
    assert_eq!(
        save_in(&client, &namespace, GroupId(1), &window[..2]).await,
        2
    );
    let slot = Slot::whole(&SHAPE);
    let rest = reserve_in(&client, &namespace, GroupId(1), &slot, &window[2..]).await;
    let groups = [(0, &full), (1, &window)].map(|(group, keys)| GroupKeys {
        group: GroupId(group),
        keys,
    });
    let lookup = HybridLookup::new(&namespace, &groups);
    let plain = client.lookup_hybrid(&lookup).await.expect("looks up");
    assert_eq!((plain.tokens, plain.pending_tokens), (32, 64));
    assert!(plain.ticket.is_none(), "it did not ask for one");
    let refused = client.claim_hybrid(&plain.lease.expect("pinned")).await;
    assert_eq!(
        refused.expect_err("it does not wait").kind(),
        ErrorKind::Invalid
    );

    let found = client.lookup_hybrid(&lookup.with_ticket()).await;
    let found = found.expect("looks up");
    assert_eq!((found.tokens, found.pending_tokens), (32, 64));
    let ticket = found.ticket.clone().expect("something to wait for");
    assert_eq!(ticket.poll(), TicketState::Waiting { ready: 32 });
    let items = items(&rest);
    for (item, ready) in items.iter().zip([48, 64]) {
        client
            .seal(&rest, &[*item], &sums(&[*item], 4))
            .await
            .expect("seals");
        let lease = found.lease.as_ref().expect("pinned");
        let claimed = client.claim_hybrid(lease).await.expect("claims");
        assert_eq!(claimed.tokens, ready);
        let blocks: Vec<_> = claimed.groups.iter().map(Vec::len).collect();
        assert_eq!(
            blocks,
            [ready as usize / 16, 2],
            "the window sees two blocks"
        );
    }
    let done = ticket.wait(Duration::from_secs(5)).await;
    assert_eq!(done, TicketState::Done { ready: 64 });
}

async fn hints_say_what_they_did(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..10);
    save(&client, &namespace, &keys[..8]).await;
    let hint = async |hint: Hint| {
        let about = HintBlocks {
            namespace: &namespace,
            group: GROUP,
            keys: &keys,
        };
        client.hint(&about, hint).await.expect("is done")
    };
    let outcome = |hinted: &Hinted| [hinted.done, hinted.coming, hinted.absent, hinted.refused];
    let ttl = Duration::from_secs(60);
    let pinned = hint(Hint::Pin { ttl }).await;
    assert_eq!(outcome(&pinned), [8, 0, 2, 0]);
    let prefetched = hint(Hint::Prefetch).await;
    assert_eq!(
        outcome(&prefetched),
        [8, 0, 2, 0],
        "there is no drive to fetch from"
    );
    assert_eq!(
        client.stats().await.expect("counts").leases,
        1,
        "that of the pin"
    );
    assert_eq!(outcome(&hint(Hint::Demote).await), [8, 0, 2, 0]);
    assert_eq!(outcome(&hint(Hint::ReleaseBranch).await), [8, 0, 2, 0]);
    assert_eq!(
        ready(&client, &namespace, &keys).await,
        8,
        "they are pinned"
    );
    let lease = pinned.lease.expect("something is pinned");
    client.release(&lease).await.expect("held");
    assert_eq!(outcome(&hint(Hint::ReleaseBranch).await), [8, 0, 2, 0]);
    assert_eq!(ready(&client, &namespace, &keys).await, 0);
    let stats = client.stats().await.expect("counts");
    assert_eq!((stats.blocks, stats.leases, stats.tickets), (0, 0, 0));
}

async fn a_full_pool_refuses_and_goes_on(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let capacity = (8 << 20) / SHAPE.bytes() as u32;
    let many = keys(&namespace, 0..capacity * 2);
    let held = reserve(&client, &namespace, &Slot::whole(&SHAPE), &many).await;
    assert!(held.out_of_budget() >= capacity as usize);
    let items = items(&held);
    assert!(items.len() as u32 > capacity * 9 / 10, "{}", items.len());
    client.abort(&held, true).await.expect("held");
    let (old, new) = many.split_at(capacity as usize);
    assert_eq!(save(&client, &namespace, &old[..100]).await, 100);
    for part in new.chunks(100) {
        assert_eq!(
            save(&client, &namespace, part).await,
            part.len() as u32,
            "by eviction"
        );
    }
}

async fn what_cannot_be_is_refused_with_a_reason(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[1])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..3);
    let refused = |result: Result<(), Error>, kind: ErrorKind, part: &str| {
        let error = result.expect_err(part);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error} / {part}");
    };
    let whole = Slot::whole(&SHAPE);
    let try_reserve = async |slot: &Slot, keys: &[_]| {
        let reserve = pegaflow_cache::client::Reserve {
            namespace: &namespace,
            group: GROUP,
            slot,
            parent: None,
            keys,
        };
        client.reserve(&reserve).await.map(|_| ())
    };
    let twice = [keys[0], keys[1], keys[0]];
    refused(
        try_reserve(&whole, &twice).await,
        ErrorKind::Invalid,
        "twice",
    );
    let outside = Slot {
        layers: 0..3,
        heads: 0..4,
    };
    refused(
        try_reserve(&outside, &keys).await,
        ErrorKind::Invalid,
        "slot",
    );
    let empty = Slot {
        layers: 0..2,
        heads: 1..1,
    };
    refused(try_reserve(&empty, &keys).await, ErrorKind::Invalid, "slot");
    let other = client.register_namespace(layout(1, SHAPE, &[])).await;
    refused(other.map(|_| ()), ErrorKind::Invalid, "stages");
    let mut shape = SHAPE;
    shape.inner_bytes = 512;
    let other = client.register_namespace(layout(1, shape, &[1])).await;
    refused(other.map(|_| ()), ErrorKind::Invalid, "block shape");
    let tiny = pegaflow_mem::BlockShape {
        layers: 1,
        parts: 1,
        heads: 64,
        inner_bytes: 8,
    };
    let other = client.register_namespace(layout(3, tiny, &[])).await;
    refused(other.map(|_| ()), ErrorKind::Invalid, "too small");
    let held = reserve(&client, &namespace, &whole, &keys).await;
    let seal =
        async |items: &[u32], sums: &[u64]| client.seal(&held, items, sums).await.map(|_| ());
    refused(seal(&[0], &[1; 7]).await, ErrorKind::Invalid, "7 checksums");
    refused(seal(&[3], &[1; 8]).await, ErrorKind::Invalid, "item 3");
    refused(seal(&[1, 0], &[1; 16]).await, ErrorKind::Invalid, "ascend");
    refused(seal(&[0, 0], &[1; 16]).await, ErrorKind::Invalid, "ascend");
    seal(&[0], &[1; 8]).await.expect("this one is right");
    refused(seal(&[0], &[1; 8]).await, ErrorKind::Invalid, "item 0");
    client.abort(&held, true).await.expect("held");
    refused(seal(&[1], &[1; 8]).await, ErrorKind::Closed, "not a lease");
    let found = lookup(&client, &namespace, &keys).await;
    let lease = found.lease.expect("one block is there");
    client.release(&lease).await.expect("held");
    refused(
        client.release(&lease).await,
        ErrorKind::Closed,
        "not a lease",
    );
}

async fn a_corrupt_block_is_dropped(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..3);
    save(&client, &namespace, &keys).await;
    let found = lookup(&client, &namespace, &keys).await;
    let mut stale = found.blocks[1];
    stale.generation += 1;
    assert!(!client.report_corrupt(keys[1], &stale).await.expect("heard"));
    assert!(
        client
            .report_corrupt(keys[1], &found.blocks[1])
            .await
            .expect("heard")
    );
    assert!(
        !client
            .report_corrupt(keys[1], &found.blocks[1])
            .await
            .expect("heard")
    );
    assert_eq!(ready(&client, &namespace, &keys).await, 1);
    assert_eq!(client.stats().await.expect("counts").corrupt, 1);
    client
        .release(&found.lease.expect("asked for"))
        .await
        .expect("held");
}

async fn room_for_the_next_save_is_made_while_nobody_waits(client: Client) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    for n in 0..64 {
        save(&client, &namespace, &keys(&namespace, n * 8..n * 8 + 8)).await;
    }
    let evicted = async || client.stats().await.expect("counts").evicted;
    let made = async {
        // A pool of 512 blocks: a 64th of them are 8.
        while evicted().await < 8 {
            tokio::task::yield_now().await;
        }
    };
    let made = tokio::time::timeout(Duration::from_secs(20), made).await;
    made.expect("room is made without being asked for");
    assert_eq!(evicted().await, 8, "and no more than that");
}
