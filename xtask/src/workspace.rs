// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What the tasks need to know of the workspace: its root, its packages, its files.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cargo_metadata::{Metadata, MetadataCommand, Package};
use xshell::{Shell, cmd};

/// The workspace as Cargo and git see it.
#[derive(Debug)]
pub(crate) struct Workspace {
    metadata: Metadata,
}

impl Workspace {
    /// Asks Cargo for the workspace around the current directory.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let metadata = MetadataCommand::new()
            .no_deps()
            .exec()
            .context("`cargo metadata` failed: run this inside a checkout of the workspace")?;
        Ok(Self { metadata })
    }

    /// The checkout's top folder.
    pub(crate) fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    /// Every member of the workspace, this tool included.
    pub(crate) fn packages(&self) -> impl Iterator<Item = &Package> {
        self.metadata.packages.iter()
    }

    /// The members that are for other people: whatever may be published.
    pub(crate) fn public(&self) -> impl Iterator<Item = &Package> {
        self.packages()
            .filter(|p| p.publish.as_ref().is_none_or(|to| !to.is_empty()))
    }

    /// A shell that stands in the root.
    pub(crate) fn shell(&self) -> anyhow::Result<Shell> {
        let sh = Shell::new()?;
        sh.change_dir(self.root());
        Ok(sh)
    }

    /// Files that are in git or would be added by `git add`, relative to the root, sorted.
    pub(crate) fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let sh = self.shell()?;
        let listed = cmd!(sh, "git ls-files --cached --others --exclude-standard -z").read()?;
        let mut files: Vec<PathBuf> = listed
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from)
            .filter(|path| self.root().join(path).is_file())
            .collect();
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// The text of a tracked file, or `None` if it is not UTF-8 text.
    pub(crate) fn text(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(self.root().join(path)).ok()
    }
}
