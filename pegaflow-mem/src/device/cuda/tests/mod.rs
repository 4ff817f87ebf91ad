// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Every case runs twice: on the simulated driver everywhere, and on a real GPU where there is one.

mod faults;
mod fixture;
mod killed;
mod methods;
mod order;

use super::driver::sim;
use super::{CudaSettings, probe};
use crate::device::conformance::{self, Fixture};
use fixture::Gpu;

/// Where a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The simulated driver with the calls of 12.8.
    Simulated,
    /// The simulated driver without them.
    SimulatedOld,
    /// The first GPU of this machine.
    Real,
}

impl Place {
    /// The driver's table; `None`, said aloud, where there is none.
    fn api(self) -> Option<&'static super::Api> {
        match self {
            Place::Simulated => Some(sim::api(true)),
            Place::SimulatedOld => Some(sim::api(false)),
            Place::Real => match probe() {
                Ok(gpus) if !gpus.is_empty() => super::open_driver().ok(),
                Ok(_) => skip("the CUDA driver has no GPU"),
                Err(why) => skip(&why.to_string()),
            },
        }
    }
}

fn skip<T>(why: &str) -> Option<T> {
    println!("skipped on this machine: {why}");
    None
}

/// Settings for tests: small staging and chunks, so that small jobs meet their borders.
fn small() -> CudaSettings {
    CudaSettings {
        staging_bytes_max: 20 << 20,
        register_bytes: 2 << 20,
        pin_at_attach: true,
        ..CudaSettings::default()
    }
}

fn conforms(place: Place, settings: &CudaSettings) {
    if let Some(api) = place.api() {
        let make = || -> Box<dyn Fixture> { Box::new(Gpu::new(api, settings)) };
        conformance::suite(&make);
    }
}

#[test]
fn conformance_simulated() {
    conforms(Place::Simulated, &small());
}

#[test]
fn conformance_simulated_old_driver() {
    conforms(Place::SimulatedOld, &small());
}

#[test]
fn conformance_gpu() {
    conforms(Place::Real, &small());
}

#[test]
fn conformance_of_each_method_simulated() {
    for method in crate::copy::Method::ALL {
        conforms(
            Place::Simulated,
            &CudaSettings {
                method: Some(method),
                ..small()
            },
        );
    }
}

#[test]
fn conformance_of_each_method_gpu() {
    for method in crate::copy::Method::ALL {
        conforms(
            Place::Real,
            &CudaSettings {
                method: Some(method),
                ..small()
            },
        );
    }
}

#[test]
fn conformance_without_kernels_simulated() {
    sim::set_faults(sim::Faults {
        module: true,
        ..Default::default()
    });
    conforms(Place::Simulated, &small());
    sim::set_faults(Default::default());
}

#[test]
fn probing_says_what_is_there() {
    match probe() {
        Ok(gpus) => assert!(gpus.iter().all(|g| !g.model.is_empty())),
        Err(why) => assert_eq!(why.kind(), crate::ErrorKind::Unsupported, "{why}"),
    }
}
