// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The same job by fio, where it is installed.

use std::process::Command;

use serde_json::Value;

use crate::{Figures, Job, Op};

/// Whether fio is installed.
pub(crate) fn there() -> bool {
    let there = Command::new("fio")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("no fio here (Debian and Ubuntu: apt install fio): running without it");
    }
    there
}

pub(crate) fn run(job: &Job<'_>) -> Figures {
    let rw = match job.op {
        Op::Read => "read",
        Op::RandRead => "randread",
        Op::Write => "write",
    };
    let output = Command::new("fio")
        .args([
            "--name=pegaflow",
            "--ioengine=io_uring",
            "--fixedbufs",
            "--registerfiles",
        ])
        .args([
            "--norandommap",
            "--time_based",
            "--output-format=json",
            "--invalidate=0",
        ])
        .arg(format!("--filename={}", job.path.display()))
        .arg(format!(
            "--size={}",
            job.bytes / job.block_bytes * job.block_bytes
        ))
        .arg(format!("--bs={}", job.block_bytes))
        .arg(format!("--iodepth={}", job.depth))
        .arg(format!("--direct={}", u8::from(job.direct)))
        .arg(format!("--rw={rw}"))
        .arg(format!("--ramp_time={}ms", job.ramp.as_millis()))
        .arg(format!("--runtime={}ms", job.time.as_millis()))
        .output()
        .expect("fio runs");
    let value: Value = serde_json::from_slice(&output.stdout).expect("fio speaks JSON");
    let result = &value["jobs"][0];
    let side = &result[if job.op == Op::Write { "write" } else { "read" }];
    let number = |v: &Value| v.as_f64().unwrap_or(0.0);
    let at = |name: &str| number(&side["clat_ns"]["percentile"][name]) / 1000.0;
    let cpu_share = (number(&result["usr_cpu"]) + number(&result["sys_cpu"])) / 100.0;
    let iops = number(&side["iops"]);
    Figures {
        gb_per_s: number(&side["bw_bytes"]) / 1e9,
        ops_per_s: iops,
        p50_us: at("50.000000"),
        p99_us: at("99.000000"),
        p999_us: at("99.900000"),
        cpu_us_per_op: cpu_share * 1e6 / iops.max(1.0),
    }
}
