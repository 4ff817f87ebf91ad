// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `kernels`: the PTX text in the tree from its CUDA source, where nvcc is.
//!
//! The text is lowered to what the oldest GPU and driver served can load: the kernels use nothing newer, and an old
//! header is read by every newer driver. A header that lies would be caught by the driver's compiler on the first load.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::workspace::Workspace;

/// Rebuild the PTX text of the copy kernels with nvcc.
///
/// Needs a CUDA toolkit (12 or 13), no GPU. The result goes beside the source and is committed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The compiler.
    #[arg(long, value_name = "PATH", default_value = "nvcc")]
    nvcc: PathBuf,
}

/// PTX version of the header: that of CUDA 11.0.
const VERSION: &str = ".version 7.0";
/// Target of the header: compute capability 7.0.
const TARGET: &str = ".target sm_70";
/// What nvcc is asked for: the first that it knows. CUDA 13 has dropped 7.0.
const ARCHES: [&str; 2] = ["compute_70", "compute_75"];

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let folder = ws.root().join("pegaflow-mem/kernels");
    for entry in std::fs::read_dir(&folder)? {
        let source = entry?.path();
        if source.extension().is_none_or(|e| e != "cu") {
            continue;
        }
        let text = ARCHES
            .iter()
            .find_map(|arch| compile(&args.nvcc, &source, arch).transpose())
            .with_context(|| format!("{} knows none of {ARCHES:?}", args.nvcc.display()))??;
        let ptx = source.with_extension("ptx");
        std::fs::write(&ptx, lower(&text))?;
        println!("{}", ptx.display());
    }
    Ok(())
}

/// The PTX text; `None` if the compiler does not know the architecture.
fn compile(nvcc: &Path, source: &Path, arch: &str) -> anyhow::Result<Option<String>> {
    let output = std::env::temp_dir().join(format!("pegaflow-{}.ptx", std::process::id()));
    let done = Command::new(nvcc)
        .args(["-ptx", "-O3", "-std=c++17", "-arch", arch, "-o"])
        .args([&output, source])
        .output()
        .with_context(|| format!("{}: is a CUDA toolkit installed?", nvcc.display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        if said.contains("nsupported gpu architecture") || said.contains("not defined for option") {
            return Ok(None);
        }
        bail!("{}: {}", source.display(), said.trim());
    }
    let text = std::fs::read_to_string(&output)?;
    std::fs::remove_file(&output)?;
    Ok(Some(text))
}

/// Drops what only newer drivers read: comments with the compiler's name, a pragma that is a hint, and the header.
fn lower(text: &str) -> String {
    let keep = |line: &&str| !line.starts_with("//") && !line.contains("\"used_bytes_mask");
    let lines = text
        .lines()
        .filter(keep)
        .map(|line| match line.split(' ').next() {
            Some(".version") => VERSION,
            Some(".target") => TARGET,
            _ => line,
        });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_lowered_and_the_rest_stays() {
        let text = "//\n// Compiler\n.version 8.4\n.target sm_75\n.address_size 64\n\t.pragma \"used_bytes_mask 1\";\n\tret;\n";
        let want = ".version 7.0\n.target sm_70\n.address_size 64\n\tret;\n";
        assert_eq!(lower(text), want);
    }
}
