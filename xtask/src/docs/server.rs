// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The server's reference pages, made from what the server says of itself.
//!
//! The server is built and asked: its help for the flags, `pegaflow-server describe` (JSON) for settings and metrics. So
//! the pages cannot name what the program does not have.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;
use xshell::cmd;

use crate::workspace::Workspace;

/// What `pegaflow-server --help` prints.
pub(super) fn help(ws: &Workspace) -> anyhow::Result<String> {
    let help = ask(ws, "--help")?;
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    Ok(format!("```text\n{}\n```", lines.join("\n")))
}

/// A section per setting: its flag, variable, type and default, then its documentation.
pub(super) fn settings(ws: &Workspace) -> anyhow::Result<String> {
    list(&described(ws)?, "settings", setting)
}

/// A section per metric: its name, type and labels, then its help.
pub(super) fn metrics(ws: &Workspace) -> anyhow::Result<String> {
    list(&described(ws)?, "metrics", metric)
}

fn described(ws: &Workspace) -> anyhow::Result<Value> {
    serde_json::from_str(&ask(ws, "describe")?).context("`pegaflow-server describe` is no JSON")
}

/// Builds the server if need be, in the profile the tests use, and returns what it prints.
fn ask(ws: &Workspace, argument: &str) -> anyhow::Result<String> {
    let sh = ws.shell()?;
    cmd!(sh, "cargo build --quiet --workspace --bin pegaflow-server")
        .quiet()
        .run()?;
    let server = ws.target().join("debug/pegaflow-server");
    // Help is wrapped to the terminal: a fixed width gives everybody the same text.
    let asked = cmd!(sh, "{server} {argument}").env("COLUMNS", "100");
    Ok(asked.quiet().read()?)
}

fn list(
    described: &Value,
    what: &str,
    write: fn(&Value, &mut String) -> Option<()>,
) -> anyhow::Result<String> {
    let items = described[what].as_array();
    let items = items.with_context(|| format!("the description has no list `{what}`"))?;
    let mut out = String::new();
    for item in items {
        write(item, &mut out).with_context(|| format!("of `{what}`, not understood: {item}"))?;
    }
    Ok(out)
}

fn setting(item: &Value, out: &mut String) -> Option<()> {
    let text = |field: &str| item[field].as_str();
    let _ = writeln!(out, "### `{}`\n", text("path")?);
    let _ = writeln!(out, "{}\n", text("doc")?.trim());
    for choice in item["choices"].as_array()? {
        let word = choice[0].as_str()?;
        let _ = writeln!(out, "- `{word}`: {}", choice[1].as_str()?.trim());
    }
    let _ = writeln!(
        out,
        "{}Flag `{}`, variable `{}`; {}, {}.\n",
        if out.ends_with("\n\n") { "" } else { "\n" },
        text("flag")?,
        text("env")?,
        text("type")?,
        match text("default")? {
            "none" => "not set by default".to_owned(),
            value => format!("default `{value}`"),
        },
    );
    Some(())
}

fn metric(item: &Value, out: &mut String) -> Option<()> {
    let _ = writeln!(out, "### `{}`\n", item["name"].as_str()?);
    let _ = writeln!(out, "{}\n", item["help"].as_str()?);
    let _ = writeln!(out, "{}.", capital(item["type"].as_str()?));
    let labels = item["labels"].as_array()?;
    if !labels.is_empty() {
        out.push_str("Labels:\n\n");
    }
    for label in labels {
        let values = &label[1];
        let values = match values["of"].as_array() {
            Some(words) => quoted(words)?,
            None => values["each"].as_str()?.to_owned(),
        };
        let _ = writeln!(out, "- `{}`: {values}", label[0].as_str()?);
    }
    out.push('\n');
    Some(())
}

fn quoted(words: &[Value]) -> Option<String> {
    let words = words
        .iter()
        .map(|word| Some(format!("`{}`", word.as_str()?)));
    Some(words.collect::<Option<Vec<_>>>()?.join(", "))
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An item of the description against its section.
    fn check(write: fn(&Value, &mut String) -> Option<()>, item: &str, want: &str) {
        let item = serde_json::from_str(item).expect("the item is JSON");
        let mut out = String::new();
        write(&item, &mut out).expect("the item is understood");
        assert_eq!(out, want);
    }

    #[test]
    fn a_setting_becomes_a_section() {
        check(
            setting,
            r#"{"path":"log.format","type":"choice","choices":[["text","For people."],["json"," One object a line."]],"default":"text","flag":"--log-format","env":"PEGAFLOW_LOG_FORMAT","doc":"Form of a line."}"#,
            "### `log.format`\n\nForm of a line.\n\n- `text`: For people.\n- `json`: One object a line.\n\n\
             Flag `--log-format`, variable `PEGAFLOW_LOG_FORMAT`; choice, default `text`.\n\n",
        );
    }

    #[test]
    fn a_metric_becomes_a_section() {
        check(
            metric,
            r#"{"name":"x_total","type":"counter","labels":[["path",{"of":["a","b"]}],["user",{"each":"user seen"}]],"help":"What it counts."}"#,
            "### `x_total`\n\nWhat it counts.\n\nCounter.\nLabels:\n\n- `path`: `a`, `b`\n- `user`: user seen\n\n",
        );
    }
}
