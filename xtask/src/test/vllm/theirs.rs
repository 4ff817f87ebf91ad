// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! vLLM's own tests of its scheduler, with our connector where they have a mock of one.
//!
//! They are in its source distribution only. Which of them say something about us, and which do not, is told in
//! `pegaflow-py/tests/theirs`.

use std::path::Path;
use std::process::Command;

use super::Release;
use crate::python::{Found, Tools, Venv};
use crate::workspace::Workspace;

/// What the tests import of their own package.
const SHARED: [&str; 7] = [
    "tests/__init__.py",
    "tests/v1/__init__.py",
    "tests/v1/core/__init__.py",
    "tests/v1/core/utils.py",
    "tests/v1/kv_connector/__init__.py",
    "tests/v1/kv_connector/unit/__init__.py",
    "tests/v1/kv_connector/unit/utils.py",
];

/// Runs the tests of a release in the environment that has it.
pub(super) fn pytest(
    ws: &Workspace,
    tools: &Tools,
    engine: &Venv,
    release: &Release,
) -> anyhow::Result<Found<Command>> {
    let plugin = ws.root().join("pegaflow-py/tests/theirs");
    let package = format!("vllm=={}", release.version);
    let files: Vec<&str> = SHARED.iter().chain(release.theirs).copied().collect();
    let fetch = plugin.join("fetch.py");
    let folder = match tools.sources(&fetch, &package, release.sources, &files)? {
        Ok(folder) => folder,
        Err(why) => return Ok(Err(why)),
    };
    let mut pytest = engine.command("python");
    pytest.current_dir(&folder);
    pytest.env(
        "PYTHONPATH",
        std::env::join_paths([folder.as_path(), &plugin])?,
    );
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "swap"]);
    pytest.args(["-c", "/dev/null", "--rootdir"]).arg(&folder);
    // Marks that their own configuration knows.
    pytest.args(["-W", "ignore"]);
    pytest.args(
        release
            .theirs
            .iter()
            .map(|file| folder.join(Path::new(file))),
    );
    Ok(Ok(pytest))
}
