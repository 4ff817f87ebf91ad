// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The dashboard and the alert rules of the book ask for metrics that a node really has.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use pegaflow_cache::metrics::{Metric, TABLE, Type, Values};
use serde_json::Value;

use crate::harness::{DEADLINE, Server};

/// Exported only once something of the kind has happened, or is configured.
const AFTER_AN_EVENT: &[&str] = &[
    "pegaflow_call_failures_total",
    "pegaflow_tenant_limit_bytes",
];

fn page(name: &str) -> PathBuf {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/monitoring");
    book.join(name)
}

fn expressions() -> Vec<String> {
    let read = |name| std::fs::read_to_string(page(name)).expect("the file is there");
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let exprs = targets.map(|target| target["expr"].as_str().expect("an expression").to_owned());
    let mut all: Vec<_> = exprs.collect();
    assert!(all.len() > 20, "{}", all.len());
    all.push(read("alerts.yaml"));
    all
}

/// The metrics that are named, each with the text up to the next.
fn metrics(text: &str) -> Vec<(Metric, &str)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let families = ["pegaflow_", "process_"];
    let starts = families
        .iter()
        .flat_map(|family| text.match_indices(family));
    let starts = starts.map(|(at, _)| at);
    let mut starts: Vec<_> = starts
        .filter(|at| !text[..*at].ends_with(is_word))
        .collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let found = starts.iter().zip(ends).map(|(start, end)| {
        let rest = &text[*start..end];
        let name = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
        let of = |metric: &&Metric| {
            let parts = ["_bucket", "_count", "_sum"];
            let base = parts.iter().find_map(|part| name.strip_suffix(part));
            match metric.kind {
                Type::Histogram => base == Some(metric.name),
                _ => metric.name == name,
            }
        };
        let metric = TABLE.iter().find(of);
        (
            *metric.unwrap_or_else(|| panic!("there is no metric {name}")),
            rest,
        )
    });
    found.collect()
}

/// Every `label="a|b"` behind a metric names values that it has.
fn check_labels(metric: &Metric, text: &str) {
    let selector = text.split_once('{').map_or("", |(before, rest)| {
        let own = before.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if own.is_empty() {
            rest.split('}').next().unwrap_or("")
        } else {
            ""
        }
    });
    for part in selector.split(',').filter(|part| part.contains('"')) {
        let (label, values) = part.split_once(['=', '!']).expect("a comparison");
        if label == "instance" {
            continue;
        }
        let known = metric.labels.iter().find(|(name, _)| *name == label);
        let (_, known) = known.unwrap_or_else(|| panic!("{} has no label {label}", metric.name));
        let values = values.trim_matches(|c| "=~\"".contains(c));
        for value in values.split('|') {
            if let Values::Of(all) = known {
                assert!(all.contains(&value), "{}: {label}={value}", metric.name);
            }
        }
    }
}

#[test]
fn dashboard_and_alerts_ask_for_what_a_node_exports() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ssd = dir.path().join("blocks").display().to_string();
    let server = Server::start(dir.path(), &["--ssd-path", &ssd, "--ssd-bytes", "64MiB"]);
    server.get("/metrics");
    let (_, text) = server.get("/metrics");
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let exported: BTreeSet<_> = types.collect();
    for expression in &expressions() {
        for (metric, text) in metrics(expression) {
            check_labels(&metric, text);
            // Histograms come with the first observation.
            let later = metric.kind == Type::Histogram || AFTER_AN_EVENT.contains(&metric.name);
            assert!(
                later || exported.contains(metric.name),
                "{} is not exported",
                metric.name
            );
        }
    }
}

#[test]
fn promtool_accepts_the_alert_rules() {
    let mut promtool = Command::new("promtool");
    let Ok(out) = promtool
        .args(["check", "rules"])
        .arg(page("alerts.yaml"))
        .output()
    else {
        println!("skipped: promtool is not installed (Debian: apt install prometheus)");
        return;
    };
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}

/// A Prometheus that scrapes one server; killed when dropped.
struct Prometheus {
    child: std::process::Child,
    address: std::net::SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// None where it is not installed.
    fn start(dir: &Path, scraped: std::net::SocketAddr) -> Option<Self> {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let rules = page("alerts.yaml");
        let config = format!(
            "global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{job_name: pegaflow, static_configs: [{{targets: [\"{scraped}\"]}}]}}]\n",
            rules.canonicalize().expect("it is there").display()
        );
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, config).expect("writable");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!(
            "--storage.tsdb.path={}",
            dir.join("tsdb").display()
        ));
        command.arg(format!("--web.listen-address={address}"));
        command.args(["--log.level=error"]);
        let child = command.spawn().ok()?;
        Some(Self { child, address })
    }

    /// The `data` of an answer; none while it does not answer yet.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = std::net::TcpStream::connect(self.address).ok()?;
        // By HTTP/1.0 a long answer comes in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let answer: Value = serde_json::from_str(body).ok()?;
        assert_eq!(answer["status"], "success", "{path}: {body}");
        Some(answer["data"].clone())
    }

    fn query(&self, expression: &str) -> Option<Value> {
        let encode = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let query: String = expression.bytes().map(encode).collect();
        let data = self.ask(&format!("/api/v1/query?query={query}"))?;
        Some(data["result"].clone())
    }

    /// Waits until an answer is as wished. Prometheus tells nobody when it has scraped: it is asked.
    fn until(&self, what: &str, f: impl Fn(&Self) -> bool) {
        let tries = DEADLINE.as_millis() / PAUSE.as_millis();
        let came = (0..tries).any(|_| {
            let is = f(self);
            if !is {
                std::thread::sleep(PAUSE);
            }
            is
        });
        assert!(came, "{what}");
    }
}

const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Prometheus itself scrapes a node, evaluates every alert rule and every panel of the dashboard.
#[test]
fn prometheus_scrapes_a_node_and_answers_every_panel() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ssd = dir.path().join("blocks").display().to_string();
    let server = Server::start(dir.path(), &["--ssd-path", &ssd, "--ssd-bytes", "64MiB"]);
    let Some(prometheus) = Prometheus::start(dir.path(), server.ready.http) else {
        println!("skipped: prometheus is not installed (Debian: apt install prometheus)");
        return;
    };
    let has =
        |value: Option<Value>| value.is_some_and(|v| v.as_array().is_some_and(|v| !v.is_empty()));
    prometheus.until("two scrapes of a ready node", |prometheus| {
        has(prometheus.query("count_over_time(pegaflow_ready[1m]) >= 2 and pegaflow_ready == 1"))
    });
    let panels = expressions();
    let (_alerts, panels) = panels.split_last().expect("panels and rules");
    for panel in panels {
        let instance = panel.replace("$instance", ".*");
        let expression = instance.replace("$__rate_interval", "1m");
        let answer = prometheus.query(&expression);
        let later = AFTER_AN_EVENT.iter().any(|name| panel.contains(name));
        let is_gauge = !panel.contains("rate(");
        assert!(
            has(answer) || later || !is_gauge,
            "{expression} has no answer"
        );
    }
    prometheus.until("every rule is evaluated", |prometheus| {
        let rules = prometheus.ask("/api/v1/rules").unwrap_or_default();
        let groups = rules["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let health: Vec<_> = rules
            .map(|rule| rule["health"].as_str().unwrap_or(""))
            .collect();
        assert!(!health.contains(&"err"), "{health:?}");
        !health.is_empty() && health.iter().all(|health| *health == "ok")
    });
}
