// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The line every benchmark prints for each point of its matrix, read by the letter.
//!
//! A field that does not apply is `null`, never absent: a reader of old files can tell "not measured" from "renamed". A
//! benchmark may add figures under names of its own (bytes a block takes, a limit that it keeps): numbers only.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value};

/// Fields of the line, all of them, in the order they are written.
const FIELDS: [&str; 10] = [
    "bench",
    "settings",
    "machine",
    "gb_per_s",
    "ops_per_s",
    "p50_us",
    "p99_us",
    "p999_us",
    "floor",
    "floor_share",
];

/// Fields of `floor`, where it is not null.
const FLOOR_FIELDS: [&str; 3] = ["what", "gb_per_s", "us"];

/// The field of `floor` that a benchmark of hits has beside these.
const HIT_SHARE: &str = "hit_share";

/// Benchmarks whose settings name the size of the work in the same two words.
const SIZED: [&str; 3] = ["index", "node", "hostcopy"];

/// One point of a benchmark's matrix.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    /// The benchmark's name.
    pub(crate) bench: String,
    /// What was set at this point; always has `op`. Values as text.
    pub(crate) settings: BTreeMap<String, String>,
    /// What it ran on, as text.
    pub(crate) machine: BTreeMap<String, String>,
    /// Bytes moved, in 10^9 a second.
    pub(crate) gb_per_s: Option<f64>,
    /// Operations a second.
    pub(crate) ops_per_s: Option<f64>,
    /// Microseconds an operation takes: the median, and what 1 in 100 and 1 in 1000 exceed.
    pub(crate) latency_us: [Option<f64>; 3],
    /// What limits this point, and how fast that is in the same run.
    pub(crate) floor: Option<Floor>,
    /// Measured over floor: 1.0 is the limit.
    pub(crate) floor_share: Option<f64>,
    /// Figures that only this benchmark has.
    pub(crate) more: BTreeMap<String, f64>,
    /// The line as it was printed.
    pub(crate) raw: String,
}

/// The limit of a point, measured in the same run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Floor {
    /// What it is, for a reader.
    pub(crate) what: String,
    /// The limit as bytes: 10^9 a second.
    pub(crate) gb_per_s: Option<f64>,
    /// The limit as time: microseconds.
    pub(crate) us: Option<f64>,
    /// The limit as a share of hits, where that is what is measured.
    pub(crate) hit_share: Option<f64>,
}

impl Line {
    /// Reads one line of standard output of the benchmark `bench`.
    ///
    /// # Errors
    /// Says which field breaks the contract, and how.
    pub(crate) fn parse(raw: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(raw).context("not a JSON line")?;
        let object = with_fields(&value, "the line", &FIELDS)?;
        let line = Self {
            bench: string(object, "bench")?,
            settings: words(object, "settings")?,
            machine: words(object, "machine")?,
            gb_per_s: number(object, "gb_per_s")?,
            ops_per_s: number(object, "ops_per_s")?,
            latency_us: [
                number(object, "p50_us")?,
                number(object, "p99_us")?,
                number(object, "p999_us")?,
            ],
            floor: floor(&object["floor"])?,
            floor_share: number(object, "floor_share")?,
            more: more(object)?,
            raw: raw.to_owned(),
        };
        line.check()?;
        Ok(line)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.settings.contains_key("op"), "`settings` has no `op`");
        if SIZED.contains(&self.bench.as_str()) {
            for key in ["keys", "layers"] {
                ensure!(self.settings.contains_key(key), "`settings` has no `{key}`");
            }
        }
        ensure!(!self.machine.is_empty(), "`machine` is empty");
        let measured = self.latency_us.into_iter();
        let mut measured = measured.chain([self.gb_per_s, self.ops_per_s]);
        ensure!(measured.any(|m| m.is_some()), "nothing was measured");
        let order: Vec<f64> = self.latency_us.into_iter().flatten().collect();
        ensure!(order.is_sorted(), "p50_us, p99_us, p999_us do not ascend");
        ensure!(
            self.floor_share.is_none() || self.floor.is_some(),
            "`floor_share` without a `floor`"
        );
        Ok(())
    }

    /// The settings in one phrase: the operation, then what distinguishes the point.
    pub(crate) fn label(&self) -> String {
        let rest = self.settings.iter().filter(|(key, _)| *key != "op");
        let rest = rest.map(|(key, value)| format!(" {key}={value}"));
        self.settings["op"].clone() + &rest.collect::<String>()
    }
}

fn with_fields<'a>(
    value: &'a Value,
    what: &str,
    fields: &[&str],
) -> anyhow::Result<&'a Map<String, Value>> {
    let object = value
        .as_object()
        .with_context(|| format!("{what} is no object"))?;
    for field in fields {
        ensure!(
            object.contains_key(*field),
            "{what} has no `{field}` (null, if it does not apply)"
        );
    }
    Ok(object)
}

/// The fields beside those of the contract.
fn more(object: &Map<String, Value>) -> anyhow::Result<BTreeMap<String, f64>> {
    let more = object
        .iter()
        .filter(|(key, _)| !FIELDS.contains(&key.as_str()));
    more.map(|(key, _)| match number(object, key)? {
        Some(figure) => Ok((key.clone(), figure)),
        None => bail!("`{key}` is not of the contract and no figure"),
    })
    .collect()
}

fn string(object: &Map<String, Value>, field: &str) -> anyhow::Result<String> {
    match object[field].as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => bail!("`{field}` is no text"),
    }
}

fn number(object: &Map<String, Value>, field: &str) -> anyhow::Result<Option<f64>> {
    match &object[field] {
        Value::Null => Ok(None),
        Value::Number(n) => match n.as_f64() {
            Some(n) if n.is_finite() && n >= 0.0 => Ok(Some(n)),
            _ => bail!("`{field}` is {n}: a measure is finite and not negative"),
        },
        other => bail!("`{field}` is {other}, not a number or null"),
    }
}

fn words(object: &Map<String, Value>, field: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let Some(map) = object[field].as_object() else {
        bail!("`{field}` is no object");
    };
    map.iter()
        .map(|(key, value)| match value {
            Value::Array(_) | Value::Object(_) => bail!("`{field}.{key}` is not one value"),
            Value::String(text) => Ok((key.clone(), text.clone())),
            other => Ok((key.clone(), other.to_string())),
        })
        .collect()
}

fn floor(value: &Value) -> anyhow::Result<Option<Floor>> {
    if value.is_null() {
        return Ok(None);
    }
    let object = with_fields(value, "`floor`", &FLOOR_FIELDS)?;
    let hit_share = match object.get(HIT_SHARE) {
        Some(_) => number(object, HIT_SHARE)?,
        None => None,
    };
    let known = |field: &&String| FLOOR_FIELDS.contains(&field.as_str()) || *field == HIT_SHARE;
    ensure!(
        object.keys().all(|field| known(&field)),
        "`floor` has more fields than {FLOOR_FIELDS:?} and `{HIT_SHARE}`"
    );
    let floor = Floor {
        what: string(object, "what")?,
        gb_per_s: number(object, "gb_per_s")?,
        us: number(object, "us")?,
        hit_share,
    };
    ensure!(
        floor.gb_per_s.is_some() || floor.us.is_some() || hit_share.is_some(),
        "`floor` has no figure"
    );
    Ok(Some(floor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"bench":"ring","settings":{"op":"read","depth":8},"machine":{"cpus":2},"gb_per_s":1.5,"ops_per_s":null,"p50_us":1,"p99_us":2,"p999_us":3,"floor":{"what":"memcpy","gb_per_s":2.0,"us":null},"floor_share":0.75}"#;

    /// The good line with one text replaced against the complaint it must cause.
    fn check(replace: &str, with: &str, complaint: &str) {
        assert!(GOOD.contains(replace), "{replace}");
        let error = Line::parse(&GOOD.replace(replace, with)).expect_err("breaks the contract");
        let error = format!("{error:#}");
        assert!(error.contains(complaint), "{error}");
    }

    #[test]
    fn a_good_line_is_read() {
        let line = Line::parse(GOOD).expect("the line keeps the contract");
        assert_eq!(line.label(), "read depth=8");
        assert_eq!(line.latency_us, [Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!(line.floor.map(|f| f.what).as_deref(), Some("memcpy"));
    }

    #[test]
    fn a_figure_of_its_own_is_kept() {
        let line = GOOD.replace(r#""p99_us":2"#, r#""p99_us":2,"bytes_per_block":82.5"#);
        let line = Line::parse(&line).expect("the line keeps the contract");
        assert_eq!(line.more["bytes_per_block"], 82.5);
    }

    #[test]
    fn a_floor_may_be_a_share_of_hits() {
        let floor = r#"{"what":"optimum","gb_per_s":null,"us":null,"hit_share":0.25}"#;
        let line = GOOD.replace(r#"{"what":"memcpy","gb_per_s":2.0,"us":null}"#, floor);
        let line = Line::parse(&line).expect("the line keeps the contract");
        assert_eq!(line.floor.and_then(|floor| floor.hit_share), Some(0.25));
    }

    #[test]
    fn each_breach_is_named() {
        check(
            r#""ops_per_s":null,"#,
            "",
            "no `ops_per_s` (null, if it does not apply)",
        );
        check(
            r#""p99_us":2"#,
            r#""p99_us":2,"note":"x""#,
            "`note` is \"x\", not a number",
        );
        check(r#""op":"read","#, "", "no `op`");
        check(r#""bench":"ring""#, r#""bench":"index""#, "no `keys`");
        check(r#""p50_us":1"#, r#""p50_us":"1""#, "not a number");
        check(r#""p50_us":1"#, r#""p50_us":-1"#, "not negative");
        check(r#""p50_us":1"#, r#""p50_us":9"#, "ascend");
        check(r#"{"cpus":2}"#, "{}", "`machine` is empty");
        check(
            r#""gb_per_s":2.0"#,
            r#""gb_per_s":null"#,
            "`floor` has no figure",
        );
        check(
            r#"{"what":"memcpy","gb_per_s":2.0,"us":null}"#,
            "null",
            "without a `floor`",
        );
        check(r#"{"bench""#, r#"x{"bench""#, "not a JSON line");
    }
}
