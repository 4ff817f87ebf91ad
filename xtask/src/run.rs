// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Runs a program and hands over its lines as they come.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::Context as _;

/// Runs `command` to its end and calls `each` for every line of both its outputs, in the order they were written
/// (one pipe serves both, so that a line on stderr never overtakes one on stdout).
///
/// # Errors
/// If the program cannot be started. Its own failure is in the returned status.
pub(crate) fn all_lines(
    mut command: Command,
    each: impl FnMut(&str),
) -> anyhow::Result<ExitStatus> {
    let (read, write) = std::io::pipe()?;
    command.stdout(write.try_clone()?).stderr(write);
    lines(command, |_| Ok(read), each)
}

/// Like [`all_lines`], for standard output only: standard error goes to the user as it is.
pub(crate) fn out_lines(
    mut command: Command,
    each: impl FnMut(&str),
) -> anyhow::Result<ExitStatus> {
    command.stdout(Stdio::piped());
    let stdout = |child: &mut std::process::Child| child.stdout.take().context("stdout is piped");
    lines(command, stdout, each)
}

fn lines<R: Read>(
    mut command: Command,
    pipe: impl FnOnce(&mut std::process::Child) -> anyhow::Result<R>,
    mut each: impl FnMut(&str),
) -> anyhow::Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    // Our own ends of the pipe live in `command`: while they do, the reader never sees the end.
    drop(command);
    let mut reader = BufReader::new(pipe(&mut child)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        each(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(child.wait()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell script against the lines that must come back, in order.
    fn check(
        of: impl Fn(Command, &mut dyn FnMut(&str)) -> anyhow::Result<ExitStatus>,
        want: &[&str],
    ) {
        let mut command = Command::new("sh");
        command.args(["-c", "echo a; echo b >&2; echo c; printf 'd\\377'; exit 3"]);
        let mut got = vec![];
        let status = of(command, &mut |line| got.push(line.to_owned())).expect("sh is everywhere");
        assert_eq!(status.code(), Some(3));
        assert_eq!(got, want);
    }

    #[test]
    fn both_outputs_keep_their_order() {
        check(|c, each| all_lines(c, each), &["a", "b", "c", "d\u{fffd}"]);
    }

    #[test]
    fn standard_output_alone() {
        check(|c, each| out_lines(c, each), &["a", "c", "d\u{fffd}"]);
    }
}
