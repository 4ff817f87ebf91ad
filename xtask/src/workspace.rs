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

    /// Where Cargo puts what it builds.
    pub(crate) fn target(&self) -> &Path {
        self.metadata.target_directory.as_std_path()
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

    /// Files that are in git or would be added by `git add`, relative to the root, sorted. In a copy without git:
    /// every file outside the build folder.
    pub(crate) fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let sh = self.shell()?;
        let listed = cmd!(sh, "git ls-files --cached --others --exclude-standard -z")
            .quiet()
            .ignore_stderr()
            .read();
        let mut files: Vec<PathBuf> = match listed {
            Ok(names) => names.split('\0').map(PathBuf::from).collect(),
            Err(_) => self.walk()?,
        };
        files.retain(|path| self.root().join(path).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }

    fn walk(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = vec![];
        let mut folders = vec![self.root().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path == self.target() || path.ends_with(".git") {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(inside) = path.strip_prefix(self.root()) {
                    files.push(inside.to_owned());
                }
            }
        }
        Ok(files)
    }

    /// The text of a tracked file, or `None` if it is not UTF-8 text.
    pub(crate) fn text(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(self.root().join(path)).ok()
    }
}
