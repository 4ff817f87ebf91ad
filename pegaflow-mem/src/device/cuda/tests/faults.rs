// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Bad input, and a driver that refuses.

use super::fixture::Gpu;
use super::{Place, sim, small};
use crate::copy::Method;
use crate::device::cuda::{CudaDevice, CudaSettings};
use crate::device::{CopyJob, Device, Direction};
use crate::layout::{BlockCopy, BlockShape, KvLayout, Slot};
use crate::{Error, ErrorKind};
use std::sync::Arc;

const SHAPE: BlockShape = BlockShape {
    layers: 2,
    parts: 2,
    heads: 2,
    inner_bytes: 16 << 10,
};

fn places() -> impl Iterator<Item = (Place, &'static super::super::Api)> {
    [Place::Simulated, Place::Real]
        .into_iter()
        .filter_map(|p| Some((p, p.api()?)))
}

fn block(block: u32, place: u64) -> BlockCopy {
    BlockCopy { block, place }
}

#[test]
fn memory_that_was_freed_is_refused_and_the_device_goes_on() {
    for (_, api) in places() {
        let gpu = Gpu::new(api, &small());
        let pool = gpu.pool(2 << 20);
        let base = gpu.alloc_alone(SHAPE.bytes() * 4);
        let kv = KvLayout::dense(SHAPE, Slot::whole(&SHAPE), base, 4).expect("valid");
        let job = CopyJob::new(Arc::new(kv), pool.clone(), vec![block(1, 0)]);
        gpu.run(Direction::Save, &job).result.expect("saved");
        gpu.free(base);
        let refused = gpu.device.save(job).expect_err("refused");
        assert_eq!(refused.error.kind(), ErrorKind::Invalid, "{refused}");
        // Never allocated, and only in part allocated.
        for base in [64 << 10, gpu.alloc_alone(64 << 10)] {
            let kv = KvLayout::dense(SHAPE, Slot::whole(&SHAPE), base, 400).expect("valid");
            let job = CopyJob::new(Arc::new(kv), pool.clone(), vec![block(0, 0)]);
            assert!(gpu.device.load(job).is_err());
        }
        let kv = gpu.layout(SHAPE, Slot::whole(&SHAPE), 4, 0);
        let good = CopyJob::new(kv, pool, vec![block(1, 0)]);
        gpu.run(Direction::Save, &good)
            .result
            .expect("the context still works");
    }
}

#[test]
fn destinations_that_overlap_are_refused() {
    for (_, api) in places() {
        let gpu = Gpu::new(api, &small());
        let pool = gpu.pool(2 << 20);
        let kv = gpu.layout(SHAPE, Slot::whole(&SHAPE), 4, 0);
        let job = |blocks| CopyJob::new(kv.clone(), pool.clone(), blocks);
        let bytes = SHAPE.bytes();
        let check = |direction, blocks, accepted| {
            let result = gpu.device.copy(direction, job(blocks));
            assert_eq!(result.is_ok(), accepted, "{direction:?}");
            if let Ok(completion) = result {
                completion.wait().result.expect("copied");
            }
        };
        check(
            Direction::Save,
            vec![block(0, 0), block(1, bytes - 8)],
            false,
        );
        check(Direction::Save, vec![block(0, 0), block(0, bytes)], true);
        check(Direction::Load, vec![block(0, 0), block(0, bytes)], false);
        check(Direction::Load, vec![block(0, 0), block(1, 0)], true);
        check(Direction::Load, vec![], true);
    }
}

#[test]
fn without_staging_memory_other_ways_serve() {
    // The rates of a device that has it, from the cache; then one that opens where there is none.
    let dir = tempfile::tempdir().expect("a folder");
    let settings = CudaSettings {
        method: Some(Method::Staged),
        cache_dir: Some(dir.path().to_owned()),
        ..small()
    };
    drop(CudaDevice::with_driver(sim::api(true), &settings).expect("opens"));
    sim::set_faults(sim::Faults {
        alloc_bytes_max: 256 << 10,
        ..Default::default()
    });
    let gpu = Gpu::with_arena(sim::api(true), &settings, 256 << 10);
    sim::set_faults(Default::default());
    let pool = gpu.pool(2 << 20);
    let shape = BlockShape {
        inner_bytes: 4096,
        ..SHAPE
    };
    let kv = gpu.layout(shape, Slot::whole(&shape), 4, 0);
    let job = CopyJob::new(kv.clone(), pool, vec![block(1, 0), block(3, 1 << 20)]);
    let outcome = gpu.run(Direction::Save, &job);
    outcome.result.expect("saved another way");
    assert_eq!(outcome.checksums, gpu.sums(&kv, &job.blocks));
}

#[test]
fn a_refused_registration_names_the_limits() {
    let gpu = Gpu::new(
        sim::api(true),
        &CudaSettings {
            pin_at_attach: false,
            ..small()
        },
    );
    let pool = gpu.pool(2 << 20);
    let kv = gpu.layout(SHAPE, Slot::whole(&SHAPE), 4, 0);
    sim::set_faults(sim::Faults {
        register: true,
        ..Default::default()
    });
    let refused = gpu
        .device
        .save(CopyJob::new(kv.clone(), pool.clone(), vec![block(1, 0)]));
    sim::set_faults(Default::default());
    let text = refused.expect_err("refused").error.to_string();
    assert!(
        text.contains("memlock") && text.contains("cgroup"),
        "{text}"
    );
    let job = CopyJob::new(kv, pool, vec![block(1, 0)]);
    gpu.run(Direction::Save, &job)
        .result
        .expect("works when it is allowed");
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let open = |s: CudaSettings| CudaDevice::with_driver(sim::api(true), &s).map(|_| ());
    let wrong = open(CudaSettings {
        register_bytes: 4096,
        ..small()
    });
    assert_eq!(wrong.expect_err("refused").kind(), ErrorKind::Invalid);
    let wrong = open(CudaSettings {
        ordinal: 7,
        ..small()
    });
    assert!(matches!(wrong, Err(Error::Unsupported { .. })), "{wrong:?}");
}

#[test]
fn rates_are_cached_by_device_and_driver() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = CudaSettings {
        cache_dir: Some(dir.path().to_owned()),
        ..small()
    };
    for (place, api) in places() {
        let first = CudaDevice::with_driver(api, &settings).expect("opens");
        let files = std::fs::read_dir(dir.path()).expect("a folder").count();
        let second = CudaDevice::with_driver(api, &settings).expect("opens");
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("a folder").count(),
            files,
            "{place:?}"
        );
        for direction in [Direction::Save, Direction::Load] {
            assert_eq!(first.rates(direction), second.rates(direction));
        }
    }
    for file in std::fs::read_dir(dir.path()).expect("a folder") {
        std::fs::write(
            file.expect("a file").path(),
            "pegaflow copy rates 2\nrubbish",
        )
        .expect("written");
    }
    CudaDevice::with_driver(sim::api(true), &settings).expect("measures anew");
}
