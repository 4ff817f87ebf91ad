// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The table itself. The doc comment of a metric is its HELP text and its line in the book.

use super::{Metric, Type, Values};

/// Upper bounds of latency buckets in seconds: 10 microseconds to 10 seconds.
#[allow(dead_code, reason = "latencies come with the node")]
const LATENCY: &[f64] = &[
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1.0, 10.0,
];

macro_rules! table {
    ($(
        $(#[doc = $help:literal])+
        $kind:ident $id:ident = $name:literal $([ $($label:ident: $values:expr),+ ])?;
    )*) => {
        $(
            $(#[doc = $help])+
            pub const $id: Metric = Metric {
                name: $name,
                kind: Type::$kind,
                labels: &[$($((stringify!($label), $values)),+)?],
                help: concat!($($help),+).trim_ascii(),
                buckets: table!(@buckets $kind),
            };
        )*
        /// Every metric there is, in the order of the book.
        pub const TABLE: &[Metric] = &[$($id),*];
    };
    (@buckets Histogram) => { LATENCY };
    (@buckets $other:ident) => { &[] };
}

table! {
    /// Always 1; the label says which version runs.
    Gauge BUILD_INFO = "pegaflow_build_info" [version: Values::Each("version that runs")];
    /// 1 while the node accepts requests, 0 while it starts, recovers or drains.
    Gauge READY = "pegaflow_ready";
    /// Time from the start of the process until the node was ready.
    Gauge START_SECONDS = "pegaflow_start_seconds";
    /// HTTP requests answered, by path and status.
    Counter HTTP_REQUESTS = "pegaflow_http_requests_total" [
        path: Values::Of(&["/health", "/ready", "/metrics", "other"]),
        status: Values::Of(&["200", "401", "404", "405", "503"])
    ];
    /// Processor time the process has used, in user and system mode.
    Counter PROCESS_CPU_SECONDS = "process_cpu_seconds_total";
    /// Memory of the process that is in RAM, with the parts of the pool that it has touched.
    Gauge PROCESS_RESIDENT_BYTES = "process_resident_memory_bytes";
    /// Memory of the process that is in RAM, without the pool: private memory and mapped files.
    Gauge PROCESS_PRIVATE_BYTES = "pegaflow_process_private_memory_bytes";
    /// Open file descriptors.
    Gauge PROCESS_OPEN_FDS = "process_open_fds";
    /// Most file descriptors that may be open.
    Gauge PROCESS_MAX_FDS = "process_max_fds";
    /// When the process started, in seconds since 1970.
    Gauge PROCESS_START_TIME = "process_start_time_seconds";
    /// Threads of the process.
    Gauge PROCESS_THREADS = "process_threads";
}
