// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Python environments below the build folder: made when first needed, kept, and made again when what they hold changes.
//!
//! A machine without Python, or without a way to the package index, is no failure of the workspace: such a task says
//! that it was skipped, and why.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::workspace::Workspace;

/// The tools, with the versions that the workspace was tested with.
const TOOLS: &[&str] = &[
    "uv>=0.9,<0.14",
    "maturin>=1.9,<2",
    "mypy>=2,<3",
    "ruff>=0.12",
];

/// An environment, or why there can be none on this machine.
pub(crate) type Found<T> = Result<T, String>;

/// A virtual environment.
#[derive(Debug, Clone)]
pub(crate) struct Venv(PathBuf);

impl Venv {
    /// A program of it.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    /// A command of one of its programs; children find its other programs first.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut paths = vec![self.0.join("bin")];
        paths.extend(std::env::split_paths(&path));
        if let Ok(paths) = std::env::join_paths(paths) {
            command.env("PATH", paths);
        }
        command.env("VIRTUAL_ENV", &self.0).env_remove("PYTHONPATH");
        command
    }

    /// Where its packages lie.
    pub(crate) fn site_packages(&self) -> anyhow::Result<PathBuf> {
        let code = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
        Ok(PathBuf::from(output(
            self.command("python").args(["-c", code]),
        )?))
    }
}

/// uv, maturin, mypy and ruff.
#[derive(Debug)]
pub(crate) struct Tools {
    venv: Venv,
    home: PathBuf,
}

impl Tools {
    /// The tools; installed if they are not there.
    pub(crate) fn ready(ws: &Workspace) -> anyhow::Result<Found<Self>> {
        let home = ws.target().join("python");
        let venv = Venv(home.join("tools"));
        if !is_current(&venv, TOOLS) {
            if let Err(why) = install_tools(&venv)? {
                return Ok(Err(why));
            }
            mark_current(&venv, TOOLS)?;
        }
        Ok(Ok(Self { venv, home }))
    }

    /// The environment of the tools themselves.
    pub(crate) fn venv(&self) -> &Venv {
        &self.venv
    }

    /// An environment `name` with `packages`, whose own requirements `overrides` replace. Made again if any of that changed.
    pub(crate) fn environment(
        &self,
        name: &str,
        packages: &[&str],
        overrides: &[&str],
    ) -> anyhow::Result<Found<Venv>> {
        let venv = Venv(self.home.join(name));
        let spec: Vec<&str> = packages.iter().chain(overrides).copied().collect();
        if is_current(&venv, &spec) {
            return Ok(Ok(venv));
        }
        eprintln!("note: making the Python environment {}", venv.0.display());
        if let Err(why) = attempt(
            self.uv(["venv", "--clear", "--python", ">=3.11,<3.15"])
                .arg(&venv.0),
        )? {
            return Ok(Err(format!("no Python 3.11 to 3.14: {why}")));
        }
        let listed = self.home.join(format!("{name}-overrides.txt"));
        std::fs::write(&listed, overrides.join("\n"))?;
        let mut install = self.uv(["pip", "install"]);
        install.arg("--python").arg(venv.program("python"));
        install.arg("--override").arg(&listed).args(packages);
        if let Err(why) = attempt(&mut install)? {
            return Ok(Err(format!(
                "the package index could not be reached, or lacks what is needed: {why}"
            )));
        }
        mark_current(&venv, &spec)?;
        Ok(Ok(venv))
    }

    /// A folder with the files of `package` as they are for the Python of `venv`, without what it requires.
    pub(crate) fn files(&self, package: &str, venv: &Venv) -> anyhow::Result<Found<PathBuf>> {
        let folder = Venv(self.home.join(package.replace("==", "-")));
        if !is_current(&folder, &[package]) {
            let mut install = self.uv(["pip", "install", "--quiet", "--no-deps", package]);
            install.arg("--python").arg(venv.program("python"));
            if let Err(why) = attempt(install.arg("--target").arg(&folder.0))? {
                return Ok(Err(why));
            }
            mark_current(&folder, &[package])?;
        }
        Ok(Ok(folder.0))
    }

    /// A folder with some files of a package's source distribution, which has the checksum `sha256`. `fetch` is the
    /// program that fetches them.
    pub(crate) fn sources(
        &self,
        fetch: &Path,
        package: &str,
        sha256: &str,
        files: &[&str],
    ) -> anyhow::Result<Found<PathBuf>> {
        let name = format!("{}-sources", package.replace("==", "-"));
        let folder = Venv(self.home.join(name));
        let spec: Vec<&str> = [package, sha256].iter().chain(files).copied().collect();
        if !is_current(&folder, &spec) {
            if folder.0.exists() {
                std::fs::remove_dir_all(&folder.0)?;
            }
            let mut python = self.venv.command("python");
            python.arg(fetch).args([package, sha256]).arg(&folder.0);
            if let Err(why) = attempt(python.args(files))? {
                return Ok(Err(why));
            }
            mark_current(&folder, &spec)?;
        }
        Ok(Ok(folder.0))
    }

    /// An empty environment, made anew.
    pub(crate) fn fresh(&self, name: &str) -> anyhow::Result<Venv> {
        let venv = Venv(self.home.join(name));
        run(self
            .uv(["venv", "--clear", "--quiet", "--seed"])
            .arg(&venv.0))?;
        Ok(venv)
    }

    /// Installs a wheel into an environment, in place of an earlier one, without what it requires.
    pub(crate) fn install(&self, venv: &Venv, wheel: &Path) -> anyhow::Result<()> {
        let mut install = self.uv(["pip", "install", "--quiet", "--reinstall", "--no-deps"]);
        run(install
            .arg("--python")
            .arg(venv.program("python"))
            .arg(wheel))
    }

    fn uv<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut uv = self.venv.command("uv");
        uv.args(args);
        uv
    }
}

fn install_tools(venv: &Venv) -> anyhow::Result<Found<()>> {
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&venv.0);
    let made = match make.output() {
        Err(error) => Err(format!("no python3: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "python3 makes no virtual environment: {}",
            last_line(&output)
        )),
    };
    if made.is_err() {
        return Ok(made);
    }
    let mut install = venv.command("python");
    install
        .args(["-m", "pip", "install", "--quiet"])
        .args(TOOLS);
    let installed = attempt(&mut install)?;
    Ok(installed.map_err(|why| format!("the package index could not be reached: {why}")))
}

fn is_current<S: AsRef<str>>(venv: &Venv, spec: &[S]) -> bool {
    std::fs::read_to_string(venv.0.join("spec.txt")).is_ok_and(|have| have == text(spec))
}

fn mark_current<S: AsRef<str>>(venv: &Venv, spec: &[S]) -> anyhow::Result<()> {
    Ok(std::fs::write(venv.0.join("spec.txt"), text(spec))?)
}

fn text<S: AsRef<str>>(spec: &[S]) -> String {
    let lines: Vec<&str> = spec.iter().map(AsRef::as_ref).collect();
    lines.join("\n")
}

/// Runs a command that may fail for want of something outside the workspace; then with the last line it printed.
fn attempt(command: &mut Command) -> anyhow::Result<Found<()>> {
    let output = command
        .output()
        .with_context(|| started(command.get_program()))?;
    Ok(if output.status.success() {
        Ok(())
    } else {
        Err(last_line(&output))
    })
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| started(command.get_program()))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

/// What a command that must succeed prints.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| started(command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn started(program: &OsStr) -> String {
    format!("cannot start {}", program.display())
}

fn last_line(output: &std::process::Output) -> String {
    let said = [&output.stderr[..], &output.stdout[..]].concat();
    let said = String::from_utf8_lossy(&said);
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.next_back().unwrap_or("it said nothing").to_owned()
}
