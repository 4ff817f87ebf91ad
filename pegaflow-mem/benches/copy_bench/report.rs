// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Lines on standard output, one per point.

use std::fmt::Write;

/// What the machine is: written into each line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine(pub(crate) Vec<(String, String)>);

/// One line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    pub(crate) bench: &'static str,
    pub(crate) settings: Vec<(&'static str, String)>,
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) ops_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// What, GB/s, us.
    pub(crate) floor: Option<(String, Option<f64>, Option<f64>)>,
    pub(crate) floor_share: Option<f64>,
    /// Time of the whole GPU that a copy took from a loop beside it, in milliseconds for each GB copied.
    pub(crate) gpu_ms_per_gb: Option<f64>,
}

impl Line {
    pub(crate) fn print(&self, machine: &Machine) {
        let mut line = String::new();
        write!(line, "{{\"bench\":{}", text(self.bench)).expect("a String");
        let settings = self
            .settings
            .iter()
            .map(|(k, v)| (k.to_string(), v.clone()));
        write!(line, ",\"settings\":{}", object(settings)).expect("a String");
        write!(line, ",\"machine\":{}", object(machine.0.iter().cloned())).expect("a String");
        for (name, value) in [
            ("gb_per_s", self.gb_per_s),
            ("ops_per_s", self.ops_per_s),
            ("p50_us", self.p50_us),
            ("p99_us", self.p99_us),
            ("p999_us", self.p999_us),
        ] {
            write!(line, ",\"{name}\":{}", number(value)).expect("a String");
        }
        match &self.floor {
            None => line.push_str(",\"floor\":null"),
            Some((what, rate, us)) => write!(
                line,
                ",\"floor\":{{\"what\":{},\"gb_per_s\":{},\"us\":{}}}",
                text(what),
                number(*rate),
                number(*us)
            )
            .expect("a String"),
        }
        write!(line, ",\"floor_share\":{}", number(self.floor_share)).expect("a String");
        if let Some(ms) = self.gpu_ms_per_gb {
            write!(line, ",\"gpu_ms_per_gb\":{}", number(Some(ms))).expect("a String");
        }
        line.push('}');
        println!("{line}");
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        Some(v) if v.is_finite() => format!("{v:.4}"),
        _ => "null".into(),
    }
}

fn text(value: &str) -> String {
    let plain: String = value.chars().filter(|c| !c.is_control()).collect();
    format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
}

fn object(pairs: impl Iterator<Item = (String, String)>) -> String {
    let pairs: Vec<_> = pairs
        .map(|(k, v)| {
            let plain = v.parse::<u64>().is_ok_and(|n| n.to_string() == v);
            format!("{}:{}", text(&k), if plain { v } else { text(&v) })
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}
