// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `test --gpu`: a folder to carry to a machine with a GPU and no Rust, and the command to run there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::workspace::Workspace;

/// Runs what needs a GPU; each test by itself, so that one that hangs does not stop the others.
const SCRIPT: &str = r#"#!/bin/sh
# Runs the tests that need a GPU. With "bench" as argument, the benchmarks too; with "sanitizer", the memory checks.
cd "$(dirname "$0")" || exit 1
failed=0
for test in $(./tests --list 2>/dev/null | sed -n 's/^\(device::cuda::tests::.*\): test$/\1/p'); do
    if timeout 60 ./tests --exact "$test" >"$test.log" 2>&1; then echo "ok     $test"; else
        failed=$((failed + 1)); echo "FAILED $test"; tail -20 "$test.log"; fi
done
if command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; then
    python3 beside_torch.py ./libbeside_engine.so || failed=$((failed + 1))
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True python3 beside_torch.py ./libbeside_engine.so || failed=$((failed + 1))
else echo "skipped: no PyTorch for beside_torch.py"; fi
case "$*" in *sanitizer*) for tool in memcheck racecheck; do
    compute-sanitizer --tool $tool ./tests --exact device::cuda::tests::methods::all_methods_gpu | tail -3; done ;; esac
case "$*" in *bench*) ./d2h >d2h.jsonl; ./h2d >h2d.jsonl; ls -l d2h.jsonl h2d.jsonl ;; esac
echo "$failed failed"
[ "$failed" = 0 ]
"#;

pub(crate) fn bundle(ws: &Workspace) -> anyhow::Result<()> {
    let folder = ws.target().join("gpu");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let package = ["--package", "pegaflow-mem"];
    let tests = build(
        ws,
        &[&["test", "--no-run", "--lib"], &package[..]].concat(),
        &["pegaflow_mem"],
    )?;
    let library = build(
        ws,
        &[&["build", "--example", "beside_engine"], &package[..]].concat(),
        &["beside_engine"],
    )?;
    let benches = build(
        ws,
        &[
            &["bench", "--no-run", "--bench", "d2h", "--bench", "h2d"],
            &package[..],
        ]
        .concat(),
        &["d2h", "h2d"],
    )?;
    for (name, path) in tests.into_iter().chain(library).chain(benches) {
        let name = match name.as_str() {
            "pegaflow_mem" => "tests".to_owned(),
            "beside_engine" => "libbeside_engine.so".to_owned(),
            other => other.to_owned(),
        };
        std::fs::copy(&path, folder.join(name))?;
    }
    let python = "pegaflow-mem/examples/beside_engine/beside_torch.py";
    std::fs::copy(ws.root().join(python), folder.join("beside_torch.py"))?;
    std::fs::write(folder.join("run.sh"), SCRIPT)?;
    println!("bundle: {}", folder.display());
    println!(
        "carry it to the machine with the GPU and run there: sh gpu/run.sh [bench] [sanitizer]"
    );
    Ok(())
}

/// Builds, and returns `(target, file)` of each program or library that came out for one of `targets`.
pub(crate) fn build(
    ws: &Workspace,
    args: &[&str],
    targets: &[&str],
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let output = Command::new("cargo")
        .current_dir(ws.root())
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo")?;
    ensure!(output.status.success(), "cargo {} failed", args.join(" "));
    let mut built = vec![];
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let target = message["target"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let ours = targets.contains(&target.as_str());
        let file = message["executable"].as_str().or_else(|| {
            let files = message["filenames"].as_array()?.iter();
            files
                .filter_map(|f| f.as_str())
                .find(|f| f.ends_with(".so"))
        });
        if let (true, Some(file)) = (ours, file) {
            built.push((target, PathBuf::from(file)));
        }
    }
    ensure!(!built.is_empty(), "cargo {} built nothing", args.join(" "));
    Ok(built)
}
