// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The metrics of a node: one table of names, units, labels and meanings.
//!
//! Code takes its handles from the table ([`Metric::counter`] and the like), the book's page and the
//! dashboards' tests are made from it, and the `metrics` facade carries the values: a program that
//! embeds a node installs any recorder it likes, or none.
//!
//! Invariant: every label has a bounded number of values, written in the table; nothing that a client
//! chooses (keys, sessions, paths) becomes a label.

mod node;
mod process;
mod table;

pub use node::{
    publish_counters, publish_ssd, publish_ssd_tenants, publish_stats, publish_tenants,
};
pub use process::Process;
pub use table::*;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations counted in buckets.
    Histogram,
}

/// The values a label can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Values {
    /// Exactly these.
    #[serde(rename = "of")]
    Of(&'static [&'static str]),
    /// One for each of a thing whose number the machine or a setting bounds.
    #[serde(rename = "each")]
    Each(&'static str),
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Metric {
    /// Its name, unit last: `pegaflow_..._seconds`, `..._bytes`; counters end in `_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    #[serde(rename = "type")]
    pub kind: Type,
    /// Labels and their values.
    pub labels: &'static [(&'static str, Values)],
    /// What it tells, in a sentence.
    pub help: &'static str,
    /// Upper bounds of a histogram's buckets, in the metric's unit.
    pub buckets: &'static [f64],
}

impl Metric {
    /// A handle that counts. `labels` gives a value for each label of the table, in its order.
    pub fn counter(&self, labels: &[&str]) -> metrics::Counter {
        debug_assert_eq!(self.kind, Type::Counter, "{}", self.name);
        metrics::counter!(self.name, self.labels(labels))
    }

    /// A handle that is set. Labels as in [`Metric::counter`].
    pub fn gauge(&self, labels: &[&str]) -> metrics::Gauge {
        debug_assert_eq!(self.kind, Type::Gauge, "{}", self.name);
        metrics::gauge!(self.name, self.labels(labels))
    }

    /// A handle that observes, in the unit of the name. Labels as in [`Metric::counter`].
    pub fn histogram(&self, labels: &[&str]) -> metrics::Histogram {
        debug_assert_eq!(self.kind, Type::Histogram, "{}", self.name);
        metrics::histogram!(self.name, self.labels(labels))
    }

    fn labels(&self, values: &[&str]) -> Vec<metrics::Label> {
        debug_assert_eq!(self.labels.len(), values.len(), "labels of {}", self.name);
        let pairs = self.labels.iter().zip(values);
        pairs
            .map(|((name, allowed), value)| {
                let known = matches!(allowed, Values::Each(_))
                    || matches!(allowed, Values::Of(all) if all.contains(value));
                debug_assert!(
                    known,
                    "`{value}` is not a value of {}'s label {name}",
                    self.name
                );
                metrics::Label::new(*name, (*value).to_owned())
            })
            .collect()
    }

    /// The unit its name ends in.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        ["seconds", "bytes", "ratio"]
            .into_iter()
            .find(|unit| name.ends_with(unit))
            .unwrap_or("")
    }
}

/// Tells the recorder in place what each metric of the table means.
pub fn describe_all() {
    for metric in TABLE {
        match metric.kind {
            Type::Counter => metrics::describe_counter!(metric.name, metric.help),
            Type::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Type::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for metric in TABLE {
            let name = metric.name;
            assert!(
                name.starts_with("pegaflow_") || name.starts_with("process_"),
                "{name}"
            );
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            );
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Type::Counter,
                "{name}"
            );
            assert!(metric.help.ends_with('.'), "{name}: help is a sentence");
            assert_eq!(
                metric.buckets.is_empty(),
                metric.kind != Type::Histogram,
                "{name}"
            );
            assert!(metric.buckets.is_sorted(), "{name}");
            assert_eq!(
                TABLE.iter().filter(|m| m.name == name).count(),
                1,
                "{name} twice"
            );
        }
    }

    #[test]
    fn a_metric_has_few_series() {
        for metric in TABLE {
            let fixed = |(_, values): &(_, Values)| match values {
                Values::Of(all) => all.len(),
                Values::Each(_) => 1,
            };
            let series: usize = metric.labels.iter().map(fixed).product();
            assert!(
                series * (metric.buckets.len() + 1) <= 400,
                "{}: {series} series",
                metric.name
            );
        }
    }
}
