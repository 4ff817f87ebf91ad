// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::ErrorKind;
use crate::device::conformance::{self, Fixture};
use crate::device::faulty::{Fault, FaultyDevice};
use crate::device::{DeviceEvent, Progress};
use crate::layout::{BlockCopy, BlockShape, KvLayout, Slot};
use crate::pool::shm::{Access, PoolSpec};

struct Host {
    host: Arc<HostDevice>,
    device: Arc<dyn Device>,
}

impl Host {
    fn new(threads: u32, faulty: bool) -> Self {
        let settings = HostSettings {
            threads,
            ..HostSettings::default()
        };
        let host = Arc::new(HostDevice::new(&settings).expect("threads"));
        let device: Arc<dyn Device> = if faulty {
            Arc::new(FaultyDevice::new(host.clone()))
        } else {
            host.clone()
        };
        Self { host, device }
    }

    fn memory(&self, address: u64) -> (HostMemory, u64) {
        let regions = self.host.lock();
        let (base, memory) = regions.range(..=address).next_back().expect("allocated");
        (memory.clone(), address - base)
    }
}

impl Fixture for Host {
    fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }
    fn alloc(&self, bytes: u64) -> u64 {
        let memory = HostMemory::zeroed(bytes).expect("memory");
        let base = memory.base();
        self.host.register(memory).expect("apart");
        base
    }
    fn write(&self, address: u64, bytes: &[u8]) {
        let (memory, offset) = self.memory(address);
        memory.copy_in(offset, bytes).expect("inside");
    }
    fn read(&self, address: u64, bytes: &mut [u8]) {
        let (memory, offset) = self.memory(address);
        memory.copy_out(offset, bytes).expect("inside");
    }
    fn event(&self) -> (DeviceEvent, Box<dyn FnOnce() + Send>) {
        let event = HostEvent::new();
        (
            DeviceEvent::new(event.clone()),
            Box::new(move || event.set()),
        )
    }
}

#[test]
fn conforms_with_one_thread() {
    conformance::suite(&|| Box::new(Host::new(1, false)));
}

#[test]
fn conforms_with_three_threads() {
    conformance::suite(&|| Box::new(Host::new(3, false)));
}

#[test]
fn conforms_behind_a_faulty_device_without_faults() {
    conformance::suite(&|| Box::new(Host::new(2, true)));
}

const SHAPE: BlockShape = BlockShape {
    layers: 2,
    parts: 2,
    heads: 2,
    inner_bytes: 4096,
};

fn pool() -> Arc<SharedMemory> {
    Arc::new(SharedMemory::create(&PoolSpec::memfd("test", 1 << 20)).expect("memory"))
}

fn job(host: &HostDevice, memory: &HostMemory) -> CopyJob {
    let layout = KvLayout::dense(SHAPE, Slot::whole(&SHAPE), memory.base(), 4).expect("valid");
    let pool = host.attach_pool(pool()).expect("attach");
    CopyJob::new(
        Arc::new(layout),
        pool,
        vec![BlockCopy {
            block: 1,
            place: 65536,
        }],
    )
}

fn host(jobs_max: u32) -> (HostDevice, HostMemory) {
    let host = HostDevice::new(&HostSettings {
        threads: 2,
        jobs_max,
        ..HostSettings::default()
    });
    let host = host.expect("threads");
    let memory = HostMemory::zeroed(4 * SHAPE.bytes()).expect("memory");
    host.register(memory.clone()).expect("apart");
    (host, memory)
}

#[test]
fn memory_that_is_not_registered_is_refused() {
    let (host, memory) = host(4);
    let good = job(&host, &memory);
    assert!(
        matches!(host.register(memory.clone()), Err(Error::InUse { .. })),
        "twice"
    );
    let mut beyond = good.clone();
    let layout = KvLayout::dense(SHAPE, Slot::whole(&SHAPE), memory.base() + 8, 4).expect("valid");
    beyond.layout = Arc::new(layout);
    let refused = host.save(beyond).expect_err("eight bytes too far");
    assert!(matches!(refused.error, Error::Foreign { .. }));
    host.unregister(memory.base()).expect("registered");
    assert!(host.unregister(memory.base()).is_err());
    assert!(matches!(
        host.load(good).expect_err("gone").error,
        Error::Foreign { .. }
    ));
}

#[test]
fn unregistering_leaves_running_copies_alone() {
    let (host, memory) = host(4);
    memory
        .copy_in(SHAPE.inner_bytes as u64 * 4, &[9; 100])
        .expect("inside");
    let event = HostEvent::new();
    let job = CopyJob {
        after: Some(DeviceEvent::new(event.clone())),
        ..job(&host, &memory)
    };
    let pool = job.pool.clone();
    let completion = host.save(job).expect("accepted");
    host.unregister(memory.base()).expect("registered");
    drop(memory);
    event.set();
    completion.wait().result.expect("the job owns the memory");
    let mut got = [0; 100];
    pool.pool().copy_out(65536, &mut got).expect("inside");
    assert_eq!(got, [9; 100]);
}

#[test]
fn over_the_limit_a_job_comes_back() {
    let (host, memory) = host(1);
    let event = HostEvent::new();
    let waiting = CopyJob {
        after: Some(DeviceEvent::new(event.clone())),
        ..job(&host, &memory)
    };
    let next = CopyJob {
        pool: waiting.pool.clone(),
        ..job(&host, &memory)
    };
    let first = host.save(waiting).expect("one is allowed");
    let refused = host.save(next).expect_err("two are not");
    assert_eq!(refused.error.kind(), ErrorKind::Busy);
    event.set();
    first.wait().result.expect("copied");
    host.save(refused.job)
        .expect("there is room again")
        .wait()
        .result
        .expect("copied");
}

#[test]
fn a_job_whose_event_is_gone_is_closed() {
    let (host, memory) = host(1);
    let event = HostEvent::new();
    let waiting = CopyJob {
        after: Some(DeviceEvent::new(event.clone())),
        ..job(&host, &memory)
    };
    let next = job(&host, &memory);
    let completion = host.save(waiting).expect("accepted");
    drop(event);
    assert!(matches!(completion.wait().result, Err(Error::Closed)));
    host.save(next)
        .expect("its seat is free")
        .wait()
        .result
        .expect("copied");
}

#[test]
fn a_closing_device_ends_what_waits() {
    let (host, memory) = host(4);
    let event = HostEvent::new();
    let waiting = CopyJob {
        after: Some(DeviceEvent::new(event.clone())),
        ..job(&host, &memory)
    };
    let running = host.save(job(&host, &memory)).expect("accepted");
    let completion = host.save(waiting).expect("accepted");
    drop(host);
    running.wait().result.expect("what was started is finished");
    assert!(matches!(completion.wait().result, Err(Error::Closed)));
    event.set();
}

#[test]
fn device_memory_can_be_another_mapping() {
    let (host, _) = host(4);
    let shared = pool();
    let reader = {
        let fd = shared.fd().try_clone_to_owned().expect("dup");
        Arc::new(SharedMemory::attach_fd(fd, Access::Read).expect("attach"))
    };
    shared.copy_in(0, &[5; 4096]).expect("inside");
    let theirs = HostMemory::shared(reader);
    host.register(theirs.clone()).expect("apart");
    let job = CopyJob {
        blocks: vec![BlockCopy { block: 0, place: 0 }],
        ..job(&host, &theirs)
    };
    host.save(job.clone())
        .expect("accepted")
        .wait()
        .result
        .expect("copied");
    let mut got = [0; 4096];
    job.pool.pool().copy_out(0, &mut got).expect("inside");
    assert_eq!(got, [5; 4096]);
    assert!(matches!(
        host.load(job).expect_err("read-only").error,
        Error::ReadOnly
    ));
}

#[test]
fn faults_happen_as_planned() {
    let (inner, memory) = host(4);
    let inner = Arc::new(inner);
    let faulty = FaultyDevice::new(inner.clone());
    let gate = HostEvent::new();
    faulty.plan([
        Fault::None,
        Fault::Refuse,
        Fault::Fail,
        Fault::Hold(gate.clone()),
        Fault::Hold(HostEvent::new()),
        Fault::Flip,
    ]);
    let job = job(&inner, &memory);
    let run = || faulty.load(job.clone()).expect("accepted");
    let good = run().wait();
    good.result.expect("no fault");
    assert_eq!(
        faulty.load(job.clone()).expect_err("refused").error.kind(),
        ErrorKind::Busy
    );
    let failed = run().wait();
    assert_eq!(
        failed.result.expect_err("fails").kind(),
        ErrorKind::Internal
    );
    assert_eq!(failed.blocks, job.blocks);
    let held = run();
    assert!(!held.is_done());
    gate.set();
    assert_eq!(held.wait().checksums, good.checksums);
    let never = run();
    assert!(
        matches!(never.wait().result, Err(Error::Cancelled)),
        "its gate is gone"
    );
    assert_ne!(
        run().wait().checksums,
        good.checksums,
        "a flipped byte shows"
    );
    assert_ne!(run().wait().checksums, good.checksums, "and stays");
}

#[test]
fn settings_are_checked() {
    let zero = HostSettings {
        threads: 0,
        ..HostSettings::default()
    };
    assert!(HostDevice::new(&zero).is_err());
    let memory = pool();
    assert!(Progress::new(memory.clone(), 4).is_err());
    assert!(Progress::new(memory, 1 << 20).is_err());
}
