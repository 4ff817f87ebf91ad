// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A Prometheus of our own, asked by `promtool`.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::picture::Curve;
use crate::programs::Running;

/// Runs until it is dropped.
#[derive(Debug)]
pub(super) struct Prometheus {
    _process: Running,
    address: SocketAddr,
}

/// An address on loopback that nobody listened on a moment ago.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Prometheus {
    /// Scrapes `target` every second, and keeps its files in `dir`.
    pub(super) fn start(dir: &Path, target: SocketAddr) -> anyhow::Result<Self> {
        let address = free_address()?;
        let config = dir.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: pegaflow, static_configs: [{{targets: [\"{target}\"]}}]}}]\n"
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdout(Stdio::null());
        Ok(Self {
            _process: Running::start(&mut command).context("Debian: apt install prometheus")?,
            address,
        })
    }

    /// What a query says about the last `length`, second by second.
    #[expect(clippy::disallowed_methods, reason = "asks for what has just been")]
    pub(super) fn range(&self, query: &str, length: Duration) -> anyhow::Result<Vec<Curve>> {
        let end = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let start = end.saturating_sub(length.as_secs());
        let answer = Command::new("promtool")
            .args(["query", "range", "--format=json", "--step=1s"])
            .args([format!("--start={start}"), format!("--end={end}")])
            .arg(format!("http://{}", self.address))
            .arg(query)
            .output()
            .context("Debian: apt install prometheus")?;
        let said = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.status.success(), "promtool: {said}");
        let answer: Value = serde_json::from_slice(&answer.stdout)?;
        Ok(curves(&answer, start as f64))
    }
}

/// The curves of an answer, times counted from `start`.
fn curves(answer: &Value, start: f64) -> Vec<Curve> {
    let labels = |series: &Value| {
        let labels = series["metric"].as_object().into_iter().flatten();
        let labels =
            labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        labels.collect()
    };
    let point = |pair: &Value| {
        let value: f64 = pair[1].as_str()?.parse().ok()?;
        value
            .is_finite()
            .then_some((pair[0].as_f64()? - start, value))
    };
    let points = |series: &Value| {
        let values = series["values"].as_array().into_iter().flatten();
        values.filter_map(point).collect()
    };
    let all = answer.as_array().into_iter().flatten();
    all.map(|series| Curve {
        labels: labels(series),
        name: String::new(),
        points: points(series),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_what_is_no_number_is_left_out() {
        let answer = serde_json::json!([
            {"metric": {"call": "lookup"}, "values": [[100, "1.5"], [101, "NaN"], [102, "2"]]},
            {"metric": {}, "values": []},
        ]);
        let found = curves(&answer, 100.0);
        assert_eq!(found[0].points, [(0.0, 1.5), (2.0, 2.0)]);
        assert_eq!(found[0].labels["call"], "lookup");
        assert!(found[1].points.is_empty());
    }
}
