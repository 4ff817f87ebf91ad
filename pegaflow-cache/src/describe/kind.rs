// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a setting accepts, and how a value of it is read and shown.
//!
//! Flags and variables arrive as text, a TOML file as typed values; both end as one [`toml::Value`]
//! that serde takes. A refusal is a sentence for the user: what is wrong and what to write instead.

use std::net::SocketAddr;

use super::{format_bytes, parse_bytes};

/// What a setting accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number from 0 to `max`.
    Count {
        /// Largest value that fits.
        max: i64,
    },
    /// A number of bytes: a whole number, or text such as `2GiB`.
    Bytes,
    /// A whole number of milliseconds from 0 to `max`.
    Millis {
        /// Largest value that fits.
        max: i64,
    },
    /// A number, with or without a fraction.
    Number,
    /// Any text.
    Text,
    /// A path of the file system.
    Path,
    /// `host:port` with a literal IP address.
    Address,
    /// One of a few words, each with its documentation.
    Choice(&'static [(&'static str, &'static str)]),
}

impl Kind {
    /// The kind of a whole number, from the words of its name (see the module's invariant).
    #[must_use]
    pub fn number(path: &str, max: i64) -> Self {
        let name = path.rsplit('.').next().unwrap_or_default();
        let has = |word: &str| name.split('_').any(|part| part == word);
        if has("bytes") {
            Kind::Bytes
        } else if has("ms") {
            Kind::Millis { max }
        } else {
            Kind::Count { max }
        }
    }

    /// One word for the documentation.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Bool => "true/false",
            Kind::Count { .. } => "count",
            Kind::Bytes => "size",
            Kind::Millis { .. } => "milliseconds",
            Kind::Number => "number",
            Kind::Text => "text",
            Kind::Path => "path",
            Kind::Address => "address",
            Kind::Choice(_) => "choice",
        }
    }

    /// The words of a choice with their documentation; none for other kinds.
    #[must_use]
    pub fn choices(&self) -> &'static [(&'static str, &'static str)] {
        if let Kind::Choice(words) = self {
            words
        } else {
            &[]
        }
    }

    /// Placeholder in `--help`: `<SIZE>`, `<text|json>`.
    #[must_use]
    pub fn placeholder(&self) -> String {
        match self {
            Kind::Bool => "true|false".to_owned(),
            Kind::Count { .. } | Kind::Number => "N".to_owned(),
            Kind::Bytes => "SIZE".to_owned(),
            Kind::Millis { .. } => "MS".to_owned(),
            Kind::Text => "TEXT".to_owned(),
            Kind::Path => "PATH".to_owned(),
            Kind::Address => "IP:PORT".to_owned(),
            Kind::Choice(words) => words
                .iter()
                .map(|(word, _)| *word)
                .collect::<Vec<_>>()
                .join("|"),
        }
    }

    /// Reads a value written as text (a flag, a variable).
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn read_text(&self, text: &str) -> Result<toml::Value, String> {
        let value = match self {
            Kind::Bool => match text {
                "true" | "1" | "yes" | "on" => true.into(),
                "false" | "0" | "no" | "off" => false.into(),
                _ => return Err(format!("`{text}` is neither true nor false")),
            },
            Kind::Count { .. } | Kind::Millis { .. } => {
                match text.replace('_', "").parse::<i64>() {
                    Ok(number) => number.into(),
                    Err(_) => text.into(),
                }
            }
            Kind::Number => text
                .parse::<f64>()
                .map_or_else(|_| text.into(), toml::Value::from),
            _ => text.into(),
        };
        self.accept(value)
    }

    /// Checks a typed value and brings it into the form serde takes (a size becomes an integer).
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn accept(&self, value: toml::Value) -> Result<toml::Value, String> {
        use toml::Value::{Boolean, Float, Integer, String};
        match (self, value) {
            (Kind::Bool, v @ Boolean(_)) | (Kind::Text | Kind::Path, v @ String(_)) => Ok(v),
            (Kind::Number, v @ Float(_)) => Ok(v),
            (Kind::Number, Integer(n)) => Ok(Float(n as f64)),
            (Kind::Bytes, Integer(n)) if n < 0 => Err(format!("{n} is negative; a size is not")),
            (Kind::Bytes, v @ Integer(_)) => Ok(v),
            (Kind::Bytes, String(text)) => {
                let bytes = parse_bytes(&text)?;
                let bytes = i64::try_from(bytes).map_err(|_| format!("`{text}` is too large"))?;
                Ok(Integer(bytes))
            }
            (Kind::Count { max } | Kind::Millis { max }, Integer(n)) => {
                if (0..=*max).contains(&n) {
                    Ok(Integer(n))
                } else {
                    Err(format!("{n} is out of range; write 0 to {max}"))
                }
            }
            (Kind::Millis { .. }, String(text)) => Err(bad_time(&text)),
            (Kind::Address, String(text)) => match text.parse::<SocketAddr>() {
                Ok(address) => Ok(String(address.to_string())),
                Err(_) => Err(bad_address(&text)),
            },
            (Kind::Choice(words), String(text)) => {
                if words.iter().any(|(word, _)| *word == text) {
                    return Ok(String(text));
                }
                let all: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                Err(format!("`{text}` is not among {}", all.join(", ")))
            }
            (_, String(text)) => Err(format!("`{text}` is not {}", self.wants())),
            (_, other) => Err(format!("{} found; write {}", of_type(&other), self.wants())),
        }
    }

    /// What to write, for messages.
    fn wants(&self) -> &'static str {
        match self {
            Kind::Bool => "true or false (without quotes)",
            Kind::Count { .. } => "a whole number",
            Kind::Bytes => "a whole number of bytes, or a size such as \"2GiB\"",
            Kind::Millis { .. } => "a whole number of milliseconds",
            Kind::Number => "a number",
            Kind::Text => "text in quotes",
            Kind::Path => "a path in quotes",
            Kind::Address => "an address such as \"127.0.0.1:7410\"",
            Kind::Choice(_) => "one of the listed words in quotes",
        }
    }

    /// A value as a person writes it on the command line.
    #[must_use]
    pub fn show(&self, value: &toml::Value) -> String {
        match (self, value) {
            (Kind::Bytes, toml::Value::Integer(n)) => {
                u64::try_from(*n).map_or_else(|_| n.to_string(), format_bytes)
            }
            (_, toml::Value::String(text)) => text.clone(),
            (_, other) => other.to_string(),
        }
    }

    /// A value as it stands in a TOML file, quoted where TOML wants quotes.
    #[must_use]
    pub fn show_toml(&self, value: &toml::Value) -> String {
        match (self, value) {
            (Kind::Bytes, toml::Value::Integer(_)) => {
                let text = self.show(value);
                if text.ends_with('B') {
                    format!("\"{text}\"")
                } else {
                    text
                }
            }
            (_, other) => other.to_string(),
        }
    }
}

fn of_type(value: &toml::Value) -> String {
    match value {
        toml::Value::Table(_) => "a section".to_owned(),
        toml::Value::Array(_) => "a list".to_owned(),
        other => format!("{} `{other}`", other.type_str()),
    }
}

/// Someone wrote `5s` where the name already says milliseconds: do the sum for them.
fn bad_time(text: &str) -> String {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "ms" => Some(1),
        "s" | "sec" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let product = factor.and_then(|f| number.parse::<i64>().ok()?.checked_mul(f));
    match product {
        Some(ms) => format!("`{text}` has a unit, but the name says milliseconds; write {ms}"),
        None => format!("`{text}` is not a whole number of milliseconds"),
    }
}

fn bad_address(text: &str) -> String {
    let port = text.rsplit(':').next().filter(|p| p.parse::<u16>().is_ok());
    match (text.contains(':'), port) {
        (true, Some(port)) => format!(
            "`{text}` needs a literal IP address; write for example `127.0.0.1:{port}` or `[::1]:{port}`"
        ),
        (false, Some(port)) => format!("`{text}` is only a port; write `127.0.0.1:{port}`"),
        _ => format!("`{text}` is not an address; write IP:PORT, for example `127.0.0.1:7410`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: Kind = Kind::Count { max: 100 };
    const MILLIS: Kind = Kind::Millis { max: 100_000_000 };
    const WORDS: Kind = Kind::Choice(&[("text", ""), ("json", "")]);

    fn check(kind: Kind, text: &str, shown: &str) {
        let value = kind.read_text(text).expect(text);
        assert_eq!(kind.show(&value), shown, "{kind:?} {text}");
        let toml = format!("v = {}", kind.show_toml(&value));
        let back = toml::from_str::<toml::Table>(&toml)
            .expect(&toml)
            .remove("v")
            .expect("v");
        assert_eq!(kind.accept(back), Ok(value), "{toml}");
    }

    #[test]
    fn text_becomes_a_value_and_back() {
        check(Kind::Bytes, "2GiB", "2GiB");
        check(Kind::Bytes, "1025", "1025");
        check(COUNT, "100", "100");
        check(MILLIS, "5_000", "5000");
        check(Kind::Bool, "on", "true");
        check(Kind::Number, "1", "1.0");
        check(Kind::Path, "/a b/\"c\"", "/a b/\"c\"");
        check(Kind::Address, "[::1]:7", "[::1]:7");
        check(WORDS, "json", "json");
    }

    #[test]
    fn a_refusal_says_what_to_write() {
        for (kind, text, part) in [
            (COUNT, "101", "write 0 to 100"),
            (COUNT, "many", "not a whole number"),
            (MILLIS, "5s", "write 5000"),
            (MILLIS, "2min", "write 120000"),
            (MILLIS, "soon", "not a whole number of milliseconds"),
            (Kind::Bool, "maybe", "neither true nor false"),
            (Kind::Address, "7410", "write `127.0.0.1:7410`"),
            (
                Kind::Address,
                "localhost:7410",
                "write for example `127.0.0.1:7410`",
            ),
            (Kind::Address, "here", "write IP:PORT"),
            (WORDS, "xml", "not among `text`, `json`"),
            (Kind::Number, "x", "not a number"),
        ] {
            let message = kind.read_text(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
        let message = Kind::Path
            .accept(toml::Value::Integer(3))
            .expect_err("no path");
        assert!(message.contains("write a path in quotes"), "{message}");
    }
}
