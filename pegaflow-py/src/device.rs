// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Who copies: threads of this process for engines in host memory, a GPU's copy engines for others.

use std::path::PathBuf;
use std::sync::Arc;

use pegaflow_mem::device::cuda::{CudaDevice, CudaSettings, Gate};
use pegaflow_mem::device::host::{HostDevice, HostSettings};
use pegaflow_mem::device::{self, Completion, CopyJob, DeviceEvent, Direction, PoolHandle};
use pyo3::prelude::*;

use crate::error::memory;
use crate::sys::{engine_memory, engine_stream};

/// Threads that pin a pool.
const PIN_THREADS: usize = 8;

/// Copies between the engine's memory and pools.
#[pyclass(frozen)]
#[derive(Debug, Clone)]
pub(crate) struct Device {
    any: Arc<dyn device::Device>,
    cuda: Option<Arc<CudaDevice>>,
}

#[pymethods]
impl Device {
    /// `threads` threads, for an engine whose KV is in this process's memory: address and bytes of each piece.
    #[staticmethod]
    fn host(py: Python<'_>, threads: u32, memory_pieces: Vec<(u64, u64)>) -> PyResult<Self> {
        py.detach(|| {
            let settings = HostSettings {
                threads,
                ..HostSettings::default()
            };
            let host = HostDevice::new(&settings).map_err(memory)?;
            for (address, bytes) in memory_pieces {
                let piece = engine_memory(address, bytes)?;
                host.register(piece).map_err(memory)?;
            }
            Ok(Self {
                any: Arc::new(host),
                cuda: None,
            })
        })
    }

    /// A GPU, by its number in this process. `cache_dir` keeps what was measured of it.
    #[staticmethod]
    #[pyo3(signature = (ordinal, cache_dir=None))]
    fn cuda(py: Python<'_>, ordinal: u32, cache_dir: Option<PathBuf>) -> PyResult<Self> {
        py.detach(|| {
            let settings = CudaSettings {
                ordinal,
                cache_dir,
                ..CudaSettings::default()
            };
            let cuda = Arc::new(CudaDevice::open(&settings).map_err(memory)?);
            Ok(Self {
                any: cuda.clone(),
                cuda: Some(cuda),
            })
        })
    }

    /// What it is.
    #[getter]
    fn name(&self) -> &str {
        self.any.name()
    }

    /// What does not work on it, and why; empty if all does.
    #[getter]
    fn limits(&self) -> Vec<String> {
        let facts = self.cuda.as_ref().map(|cuda| cuda.facts().limits);
        facts.unwrap_or_default()
    }
}

impl Device {
    pub(crate) fn any(&self) -> Arc<dyn device::Device> {
        self.any.clone()
    }

    /// What the engine's stream has to do by now; nothing for an engine in host memory, whose work is done when it
    /// says so.
    pub(crate) fn event(&self, stream: Option<u64>) -> PyResult<Option<DeviceEvent>> {
        let (Some(cuda), Some(stream)) = (&self.cuda, stream) else {
            return Ok(None);
        };
        let event = cuda.event(engine_stream(stream)).map_err(memory)?;
        Ok(Some(event))
    }

    /// Starts a load; with a gate for the engine's streams where there are such, which opens layer after layer or at the
    /// end.
    pub(crate) fn load(
        &self,
        job: CopyJob,
        by_layer: bool,
    ) -> pegaflow_mem::Result<(Completion, Option<Gate>)> {
        let started = match &self.cuda {
            Some(cuda) => cuda
                .submit(Direction::Load, job, by_layer)
                .map(|(completion, gate)| (completion, Some(gate))),
            None => self.any.load(job).map(|completion| (completion, None)),
        };
        started.map_err(|refused| refused.error)
    }

    /// Pins a pool now, where that is a thing to do, so that no load has to wait for it.
    pub(crate) fn pin(&self, pool: &PoolHandle) -> pegaflow_mem::Result<()> {
        match &self.cuda {
            Some(cuda) => cuda.pin_pool(pool, PIN_THREADS),
            None => Ok(()),
        }
    }
}

/// Number, name, bytes of memory, and limits.
type Gpu = (u32, String, u64, Vec<String>);

/// What the driver says of this machine's GPUs: number, name, bytes of memory and limits of each; or why there are none.
#[pyfunction]
pub(crate) fn probe_gpus(py: Python<'_>) -> PyResult<Vec<Gpu>> {
    let gpus = py
        .detach(pegaflow_mem::device::cuda::probe)
        .map_err(memory)?;
    let facts = gpus.into_iter();
    Ok(facts
        .map(|gpu| (gpu.ordinal, gpu.model, gpu.memory_bytes, gpu.limits))
        .collect())
}
