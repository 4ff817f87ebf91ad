// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Where settings come from, and which one wins: flag, environment, file, default, in this order.
//!
//! Every value is checked where it was written, so a refusal names that place (file and line, flag
//! or variable). All problems of a configuration are reported at once, not one a run.
//!
//! Pure: the caller reads the file and the environment.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{ConfigError, Origin, Problem};
use crate::describe::{Describe, Setting, describe, join};

/// Values on their way to becoming a struct of settings.
#[derive(Debug)]
pub struct Layers {
    schema: Vec<Setting>,
    values: BTreeMap<String, (toml::Value, Origin)>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Layers {
    /// Only defaults.
    #[must_use]
    pub fn new<T: Describe + Default>() -> Self {
        Self {
            schema: describe::<T>(),
            values: BTreeMap::new(),
            problems: vec![],
            warnings: vec![],
        }
    }

    /// Every setting there is.
    #[must_use]
    pub fn schema(&self) -> &[Setting] {
        &self.schema
    }

    /// Where the value of `path` was written.
    #[must_use]
    pub fn origin(&self, path: &str) -> Origin {
        self.values
            .get(path)
            .map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    /// Adds a TOML file: `text` was read from `file`.
    pub fn file(&mut self, file: &Path, text: &str) {
        match DeTable::parse(text) {
            Ok(table) => self.table("", table.get_ref(), &Lines { file, text }),
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(text, span.start));
                let what = error.message().trim().replace('\n', ", ");
                self.problem(Origin::File(file.into(), line), "", what, "");
            }
        }
    }

    fn table(&mut self, path: &str, table: &DeTable<'_>, lines: &Lines<'_>) {
        for (key, value) in table {
            let path = join(path, &escape(key.get_ref()));
            let origin = Origin::File(lines.file.into(), line_of(lines.text, key.span().start));
            if let Some(setting) = self.find(&path) {
                self.accept(&setting, plain(value), origin);
            } else if !self.is_section(&path) {
                self.unknown(&path, origin);
            } else if let DeValue::Table(table) = value.get_ref() {
                self.table(&path, table, lines);
            } else {
                let fix =
                    format!("write `[{path}]` on a line of its own and its settings below it");
                self.problem(origin, &path, "this is a section, not a value", &fix);
            }
        }
    }

    /// Adds the variables of the environment that start with `PEGAFLOW_`; `RUST_LOG` stands for
    /// `log.filter` where nothing else sets it. Those in `others` belong to other parts of PegaFlow.
    ///
    /// An unknown name is only a warning: Kubernetes makes up such names for a service `pegaflow`.
    pub fn env(&mut self, vars: impl IntoIterator<Item = (String, String)>, others: &[&str]) {
        let by_name: BTreeMap<_, _> = self.schema.iter().map(|s| (s.env(), s.clone())).collect();
        for (name, text) in vars {
            let origin = Origin::Env(name.clone());
            if let Some(setting) = by_name.get(&name) {
                self.text(setting, &text, origin);
            } else if name == "RUST_LOG" && self.is_default("log.filter") {
                if let Some(setting) = self.find("log.filter") {
                    self.text(&setting, &text, origin);
                }
            } else if name.starts_with("PEGAFLOW_") && !others.contains(&name.as_str()) {
                let near = nearest(&name, by_name.keys());
                let fix = near
                    .map(|near| format!("did you mean `{near}`?"))
                    .unwrap_or_default();
                let what = "no setting has this name; ignored".to_owned();
                self.warnings.push(Problem {
                    origin,
                    path: String::new(),
                    what,
                    fix,
                });
            }
        }
    }

    /// Notes that the value of `path` is odd, though it works.
    pub fn warn(&mut self, path: &str, what: impl Into<String>, fix: &str) {
        let (origin, path, fix) = (self.origin(path), unescape(path), fix.to_owned());
        self.warnings.push(Problem {
            origin,
            path,
            what: what.into(),
            fix,
        });
    }

    /// What is odd but does not stop the server.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Adds the value of a flag.
    pub fn flag(&mut self, path: &str, text: &str) {
        if let Some(setting) = self.find(path) {
            self.text(
                &setting,
                text,
                Origin::Flag(format!("--{}", setting.flag())),
            );
        }
    }

    fn text(&mut self, setting: &Setting, text: &str, origin: Origin) {
        match setting.kind.read_text(text) {
            Ok(value) => self.set(&setting.path, value, origin),
            Err(what) => self.problem(origin, &setting.path, what, ""),
        }
    }

    fn accept(&mut self, setting: &Setting, value: toml::Value, origin: Origin) {
        match setting.kind.accept(value) {
            Ok(value) => self.set(&setting.path, value, origin),
            Err(what) => self.problem(origin, &setting.path, what, ""),
        }
    }

    fn set(&mut self, path: &str, value: toml::Value, origin: Origin) {
        self.values.insert(path.to_owned(), (value, origin));
    }

    fn is_default(&self, path: &str) -> bool {
        !self.values.contains_key(path)
    }

    fn unknown(&mut self, path: &str, origin: Origin) {
        let sections = self
            .schema
            .iter()
            .filter_map(|s| s.path.split('.').next().map(str::to_owned));
        let known: Vec<_> = self
            .schema
            .iter()
            .map(|s| s.path.clone())
            .chain(sections)
            .collect();
        // A right key in the wrong section is the likelier mistake than a typing error.
        let last = path.rsplit('.').next().unwrap_or(path);
        let same = known
            .iter()
            .find(|k| k.as_str() != path && k.rsplit('.').next() == Some(last));
        let fix = match same.or_else(|| nearest(path, &known)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`pegaflow-server --print-config` lists every setting".to_owned(),
        };
        self.problem(origin, path, "no setting has this name", &fix);
    }

    /// Notes a problem with the value of `path`, at the place where it was written.
    pub fn reject(&mut self, path: &str, what: impl Into<String>, fix: &str) {
        self.problem(self.origin(path), path, what, fix);
    }

    fn problem(&mut self, origin: Origin, path: &str, what: impl Into<String>, fix: &str) {
        let (path, what, fix) = (unescape(path), what.into(), fix.to_owned());
        self.problems.push(Problem {
            origin,
            path,
            what,
            fix,
        });
    }

    /// The setting at `path`, where `*` in the schema stands for any name.
    fn find(&self, path: &str) -> Option<Setting> {
        let found = self.schema.iter().find(|s| covers(&s.path, path, true))?;
        Some(Setting {
            path: path.to_owned(),
            ..found.clone()
        })
    }

    fn is_section(&self, path: &str) -> bool {
        self.schema.iter().any(|s| covers(&s.path, path, false))
    }

    /// The settings, if nothing was wrong so far. `T` must be the type given to [`Layers::new`].
    ///
    /// # Errors
    /// All problems found.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        if !self.problems.is_empty() {
            return Err(ConfigError {
                problems: self.problems.clone(),
            });
        }
        let mut root = toml::Table::new();
        for (path, (value, _)) in &self.values {
            insert(&mut root, path, value.clone());
        }
        root.try_into().map_err(|error: toml::de::Error| {
            let what = error.message().to_owned();
            let (origin, path, fix) = (Origin::Default, String::new(), String::new());
            ConfigError {
                problems: vec![Problem {
                    origin,
                    path,
                    what,
                    fix,
                }],
            }
        })
    }
}

/// The file being read, for line numbers.
struct Lines<'a> {
    file: &'a Path,
    text: &'a str,
}

/// A key as a segment of a dotted path: a dot in it (a tenant named `a.b`) is no separator.
pub(super) fn escape(key: &str) -> String {
    key.replace('.', "\0")
}

fn unescape(segment: &str) -> String {
    segment.replace('\0', ".")
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

/// Whether `path` is the setting `pattern` (`whole`), or a section above it.
fn covers(pattern: &str, path: &str, whole: bool) -> bool {
    let (mut pattern, mut path) = (pattern.split('.'), path.split('.'));
    loop {
        match (pattern.next(), path.next()) {
            (Some(p), Some(q)) if p == q || p == "*" => {}
            (None, None) => return whole,
            (Some(_), None) => return !whole,
            _ => return false,
        }
    }
}

fn insert(root: &mut toml::Table, path: &str, value: toml::Value) {
    match path.split_once('.') {
        None => {
            root.insert(unescape(path), value);
        }
        Some((head, rest)) => {
            let entry = root
                .entry(unescape(head))
                .or_insert_with(|| toml::Table::new().into());
            if let toml::Value::Table(table) = entry {
                insert(table, rest, value);
            }
        }
    }
}

fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
    let scored = known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(name, k), k));
    scored
        .filter(|(d, k)| *d <= 2 + k.len() / 6)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// A parsed value without its spans.
fn plain(value: &Spanned<DeValue<'_>>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(b) => (*b).into(),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => n.into(),
            Err(_) => n.as_str().into(),
        },
        DeValue::Float(x) => x
            .as_str()
            .parse::<f64>()
            .map_or_else(|_| x.as_str().into(), Into::into),
        DeValue::Datetime(d) => (*d).into(),
        DeValue::Array(items) => items.iter().map(plain).collect::<Vec<_>>().into(),
        DeValue::Table(table) => {
            let pairs = table
                .iter()
                .map(|(k, v)| (k.get_ref().to_string(), plain(v)));
            pairs.collect::<toml::Table>().into()
        }
    }
}

#[cfg(test)]
mod tests;
