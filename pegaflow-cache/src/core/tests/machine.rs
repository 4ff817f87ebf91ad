// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The core and its reference model side by side, under random calls in tiny pools.

use super::rig::{A, BLOCK_BYTES, Rig, key};
use super::shell::Shell;
use crate::core::reference::{
    Client, Held, Key, LeaseNo, Model, PARTIAL_TTL_MS, READ_TTL_MS, Reserved, State, WRITE_TTL_MS,
    slot,
};
use crate::core::*;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

#[derive(Debug, Clone)]
enum Call {
    Reserve {
        client: usize,
        slot: u8,
        parent: Option<Key>,
        keys: Vec<Key>,
    },
    Seal {
        client: usize,
        lease: LeaseNo,
        items: u16,
    },
    Abort {
        client: usize,
        lease: LeaseNo,
        quiesced: bool,
    },
    Lookup {
        client: usize,
        keys: Vec<Key>,
        set: bool,
        lease: bool,
    },
    Release {
        client: usize,
        lease: LeaseNo,
    },
    Corrupt {
        client: usize,
        key: Key,
    },
    Close {
        client: usize,
    },
    Gone {
        client: usize,
    },
    Open {
        client: usize,
    },
    Tick {
        ms: u64,
    },
}

/// What the model says that the call must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expect {
    Nothing,
    Reserved(Vec<Reserved>, Option<LeaseNo>),
    Sealed(Vec<u32>, SealReply),
    Found(Vec<u32>, u32, Option<LeaseNo>),
    Dropped(bool),
    UnknownLease,
    UnknownSession,
}

#[derive(Debug, Clone)]
struct Reference {
    model: Model,
    expect: Expect,
}

const KEYS: u64 = 12;

fn some_keys() -> impl Strategy<Value = Vec<Key>> {
    // A run of the key space is a prefix that others share; a subsequence has gaps.
    let run = (0..KEYS, 1..6u64).prop_map(|(from, n)| (from..(from + n).min(KEYS)).collect());
    prop_oneof![3 => run, 1 => subsequence((0..KEYS).collect::<Vec<_>>(), 1..5).prop_shuffle()]
}

impl Reference {
    /// One of the living leases, or one that never was.
    fn lease(&self) -> impl Strategy<Value = (usize, LeaseNo)> + use<> {
        let mut all: Vec<_> = self
            .model
            .leases
            .iter()
            .map(|(no, l)| (l.client, *no))
            .collect();
        all.push((0, self.model.granted + 1));
        any::<Index>().prop_map(move |index| *index.get(&all))
    }
}

impl ReferenceStateMachine for Reference {
    type State = Self;
    type Transition = Call;

    fn init_state() -> BoxedStrategy<Self> {
        let new = |capacity| Self {
            model: Model::new(capacity),
            expect: Expect::Nothing,
        };
        (1..10usize).prop_map(new).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Call> {
        let client = || 0..3usize;
        let parent = proptest::option::weighted(0.3, 0..KEYS);
        let reserve =
            (client(), 0..3u8, parent, some_keys()).prop_map(|(client, slot, parent, keys)| {
                Call::Reserve {
                    client,
                    slot,
                    parent,
                    keys,
                }
            });
        let seal = (
            state.lease(),
            prop_oneof![2 => Just(u16::MAX), 1 => any::<u16>()],
        )
            .prop_map(|((client, lease), items)| Call::Seal {
                client,
                lease,
                items,
            });
        let abort =
            (state.lease(), any::<bool>()).prop_map(|((client, lease), quiesced)| Call::Abort {
                client,
                lease,
                quiesced,
            });
        let lookup = (client(), some_keys(), any::<bool>(), any::<bool>()).prop_map(
            |(client, keys, set, lease)| Call::Lookup {
                client,
                keys,
                set,
                lease,
            },
        );
        let release = state
            .lease()
            .prop_map(|(client, lease)| Call::Release { client, lease });
        let corrupt = (client(), 0..KEYS).prop_map(|(client, key)| Call::Corrupt { client, key });
        prop_oneof![
            8 => reserve,
            8 => seal,
            2 => abort,
            5 => lookup,
            4 => release,
            1 => corrupt,
            1 => client().prop_map(|client| Call::Close { client }),
            1 => client().prop_map(|client| Call::Gone { client }),
            2 => client().prop_map(|client| Call::Open { client }),
            2 => (0..60u64).prop_map(|ms| Call::Tick { ms }),
        ]
        .boxed()
    }

    fn preconditions(state: &Self, call: &Call) -> bool {
        match call {
            Call::Gone { client } => state.model.clients[*client] != Client::Gone,
            Call::Open { client } => state.model.clients[*client] == Client::Gone,
            _ => true,
        }
    }

    fn apply(mut state: Self, call: &Call) -> Self {
        state.expect = predict(&mut state.model, call);
        state
    }
}

fn predict(model: &mut Model, call: &Call) -> Expect {
    let client = match call {
        Call::Reserve { client, .. }
        | Call::Seal { client, .. }
        | Call::Abort { client, .. }
        | Call::Lookup { client, .. }
        | Call::Release { client, .. }
        | Call::Corrupt { client, .. }
        | Call::Close { client } => Some(*client),
        Call::Gone { .. } | Call::Open { .. } | Call::Tick { .. } => None,
    };
    if client.is_some_and(|client| !model.is_open(client)) {
        return Expect::UnknownSession;
    }
    match call {
        Call::Reserve {
            client,
            slot,
            parent,
            keys,
        } => {
            let (answers, lease) = model.reserve(*client, *slot, *parent, keys);
            Expect::Reserved(answers, lease)
        }
        Call::Seal {
            client,
            lease,
            items,
        } => {
            let Some(open) = model.open_items(*client, *lease) else {
                return Expect::UnknownLease;
            };
            let wanted: Vec<_> = open.into_iter().filter(|at| items >> at & 1 == 1).collect();
            let reply = model.seal(*lease, &wanted);
            Expect::Sealed(wanted, reply)
        }
        Call::Abort {
            client,
            lease,
            quiesced,
        } => {
            if model.open_items(*client, *lease).is_none() {
                return Expect::UnknownLease;
            }
            model.abort(*lease, *quiesced);
            Expect::Nothing
        }
        Call::Lookup {
            client,
            keys,
            set,
            lease,
        } => {
            let (found, pending, lease) = model.lookup(*client, keys, mode(*set), *lease);
            Expect::Found(found, pending, lease)
        }
        Call::Release { client, lease } => match model.release(*client, *lease) {
            true => Expect::Nothing,
            false => Expect::UnknownLease,
        },
        Call::Corrupt { key, .. } => Expect::Dropped(model.corrupt(*key)),
        Call::Close { client } => {
            model.close(*client);
            Expect::Nothing
        }
        Call::Gone { client } => {
            model.gone(*client);
            Expect::Nothing
        }
        Call::Open { client } => {
            model.open(*client);
            Expect::Nothing
        }
        Call::Tick { ms } => {
            model.tick(*ms);
            Expect::Nothing
        }
    }
}

fn mode(set: bool) -> LookupMode {
    if set {
        LookupMode::Set
    } else {
        LookupMode::Prefix
    }
}

/// The core, the shell's books, and the model's numbers of its leases.
struct Real {
    rig: Rig,
    shell: Shell,
    leases: Vec<LeaseId>,
    lives: [u64; 3],
}

impl Real {
    fn session(&self, client: usize) -> SessionId {
        SessionId(100 * (client as u64 + 1) + self.lives[client])
    }

    fn lease(&self, no: LeaseNo) -> LeaseId {
        // Numbers count from 1; a lease that never was has none.
        self.leases
            .get(no - 1)
            .copied()
            .unwrap_or(LeaseId(u64::MAX))
    }

    fn call(&mut self, call: &Call, expect: &Expect) -> Result<Expect, Error> {
        let now = self.rig.now;
        match call {
            Call::Reserve {
                client,
                slot: which,
                parent,
                keys,
            } => {
                let session = self.session(*client);
                let keys: Vec<_> = keys.iter().map(|k| key(*k)).collect();
                let parent = parent.map(key);
                let reply = self
                    .rig
                    .reserve_slot(session, &slot(*which), parent, &keys)?;
                self.leases.extend(reply.lease);
                let lease = reply.lease.map(|_| self.leases.len());
                Ok(Expect::Reserved(
                    reply.answers.iter().map(reserved).collect(),
                    lease,
                ))
            }
            Call::Seal { client, lease, .. } => {
                let session = self.session(*client);
                let Expect::Sealed(items, _) = expect else {
                    let lease = self.lease(*lease);
                    let sealed =
                        self.rig
                            .core
                            .seal(now, session, lease, &[], &mut self.rig.actions);
                    return sealed.map(|reply| Expect::Sealed(vec![], reply));
                };
                let lease = self.lease(*lease);
                let reply =
                    self.rig
                        .core
                        .seal(now, session, lease, items, &mut self.rig.actions)?;
                Ok(Expect::Sealed(items.clone(), reply))
            }
            Call::Abort {
                client,
                lease,
                quiesced,
            } => {
                let (session, lease) = (self.session(*client), self.lease(*lease));
                let actions = &mut self.rig.actions;
                let done = self.rig.core.abort(now, session, lease, *quiesced, actions);
                done.map(|()| Expect::Nothing)
            }
            Call::Lookup {
                client,
                keys,
                set,
                lease,
            } => {
                let keys: Vec<_> = keys.iter().map(|k| key(*k)).collect();
                let session = self.session(*client);
                let ttl = lease.then_some(READ_TTL_MS);
                let reply = self.rig.try_look(session, &keys, mode(*set), ttl, None)?;
                self.check_found(&keys, &reply);
                self.leases.extend(reply.lease);
                let lease = reply.lease.map(|_| self.leases.len());
                let at = reply.blocks.iter().map(|block| block.key).collect();
                Ok(Expect::Found(at, reply.pending, lease))
            }
            Call::Release { client, lease } => {
                let (session, lease) = (self.session(*client), self.lease(*lease));
                self.rig
                    .core
                    .release(session, lease, &mut self.rig.actions)?;
                Ok(Expect::Nothing)
            }
            Call::Corrupt { client, key: k } => {
                let session = self.session(*client);
                let found = self
                    .rig
                    .try_look(session, &[key(*k)], LookupMode::Set, None, None)?;
                let Some(block) = found.blocks.first() else {
                    return Ok(Expect::Dropped(false));
                };
                let (place, generation) = (block.place, block.generation);
                let actions = &mut self.rig.actions;
                let stale = generation.wrapping_sub(1);
                let core = &mut self.rig.core;
                assert_eq!(
                    core.report_corrupt(session, &key(*k), place, stale, actions),
                    Ok(false)
                );
                let dropped = core.report_corrupt(session, &key(*k), place, generation, actions)?;
                Ok(Expect::Dropped(dropped))
            }
            Call::Close { client } => {
                let session = self.session(*client);
                self.rig
                    .core
                    .close_session(now, session, &mut self.rig.actions)?;
                Ok(Expect::Nothing)
            }
            Call::Gone { client } => {
                let session = self.session(*client);
                self.rig
                    .core
                    .process_gone(now, session, &mut self.rig.actions)?;
                Ok(Expect::Nothing)
            }
            Call::Open { client } => {
                self.lives[*client] += 1;
                self.rig.core.open_session(self.session(*client), 0)?;
                Ok(Expect::Nothing)
            }
            Call::Tick { ms } => {
                self.rig.now.0 += ms;
                self.rig.core.tick(self.rig.now, &mut self.rig.actions);
                Ok(Expect::Nothing)
            }
        }
    }

    /// Only sealed blocks are seen, where their records are.
    fn check_found(&self, keys: &[pegaflow_meta::BlockKey], reply: &LookupReply) {
        for block in &reply.blocks {
            let record = self.shell.records[&block.place];
            assert!(record.sealed, "{block:?} is not sealed");
            assert_eq!(
                (record.key, record.generation),
                (keys[block.key as usize], block.generation)
            );
        }
    }
}

fn reserved(answer: &Answer) -> Reserved {
    match answer {
        Answer::Have => Reserved::Have,
        Answer::InFlight => Reserved::InFlight,
        Answer::Place { .. } => Reserved::Place,
        Answer::OutOfBudget => Reserved::Refused,
    }
}

impl StateMachineTest for Real {
    type SystemUnderTest = Self;
    type Reference = Reference;

    fn init_test(state: &Reference) -> Self {
        let settings = CoreSettings {
            read_lease_ttl_max_ms: READ_TTL_MS,
            write_lease_ttl_ms: WRITE_TTL_MS,
            partial_block_ttl_ms: PARTIAL_TTL_MS,
            eviction: EvictionPolicy::Lru,
            ..CoreSettings::default()
        };
        let rig = Rig::with(settings, state.model.capacity as u64);
        let mut shell = Shell::new(BLOCK_BYTES);
        shell.block_bytes.insert(rig.namespace, BLOCK_BYTES);
        let mut real = Self {
            rig,
            shell,
            leases: vec![],
            lives: [0; 3],
        };
        for client in 0..3 {
            let session = real.session(client);
            real.rig
                .core
                .open_session(session, 0)
                .expect("a new session");
        }
        real
    }

    fn apply(mut real: Self, state: &Reference, call: Call) -> Self {
        let got = match real.call(&call, &state.expect) {
            Ok(got) => got,
            Err(Error::UnknownSession(_)) => Expect::UnknownSession,
            Err(Error::UnknownLease(_)) => Expect::UnknownLease,
            Err(other) => panic!("{call:?}: {other}"),
        };
        assert_eq!(got, state.expect, "{call:?}");
        real.shell.apply(&mut real.rig.actions);
        real
    }

    fn check_invariants(real: &Self, state: &Reference) {
        let (stats, model) = (real.rig.core.stats(), &state.model);
        assert_eq!(stats.used_bytes, model.used() as u64 * BLOCK_BYTES);
        assert_eq!(stats.sealed_blocks, model.count(State::Sealed) as u64);
        assert_eq!(stats.writing_blocks, model.count(State::Writing) as u64);
        assert_eq!(stats.leases, model.leases.len() as u64);
        assert_eq!(
            real.shell.records.len(),
            model.used(),
            "a record for every place in use"
        );
        real.rig.core.check();
    }

    /// Once all processes are gone and all reports are in, everything that is left can be evicted.
    fn teardown(mut real: Self, state: Reference) {
        for client in 0..3 {
            if state.model.clients[client] != Client::Gone {
                let session = real.session(client);
                let gone = real
                    .rig
                    .core
                    .process_gone(real.rig.now, session, &mut real.rig.actions);
                gone.expect("it is known");
            }
        }
        real.rig.now.0 += PARTIAL_TTL_MS;
        real.rig.core.tick(real.rig.now, &mut real.rig.actions);
        let keys: Vec<_> = (100..100 + state.model.capacity as u64).map(key).collect();
        let all = real.rig.reserve(A, &keys);
        assert_eq!(
            all.places as usize, state.model.capacity,
            "no place is lost"
        );
        real.shell.apply(&mut real.rig.actions);
        assert!(
            state
                .model
                .leases
                .values()
                .all(|lease| !matches!(&lease.held, Held::Read(r) if r.is_empty()))
        );
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_what_the_model_says(sequential 1..80 => Real);
}
