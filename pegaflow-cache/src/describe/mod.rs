// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Settings that describe themselves: one declaration gives the struct, its defaults, its serde
//! form, its flags and its page in the book.
//!
//! The `settings!` macro writes a struct whose doc comments are also data, so the Configuration
//! Reference, `--help` and `--print-config` cannot say different things. Knows nothing of files,
//! flags or the environment: `server::layers` reads those.
//!
//! Invariant: the unit of a number follows from its name: a word `bytes` is a size, a last word
//! `ms` is a time, anything else is a count.

mod file;
mod kind;
mod units;

pub(crate) use file::{first_line, read_file};
pub use kind::Kind;
pub use units::{format_bytes, parse_bytes};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// One setting: what it is called, what it accepts, what it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Dotted path in the TOML file, such as `log.format`.
    pub path: String,
    /// What it accepts.
    pub kind: Kind,
    /// Value when nobody sets it; `None` when it is then absent.
    pub default: Option<toml::Value>,
    /// Its documentation: the doc comment of the field.
    pub doc: String,
}

impl Setting {
    /// The command line flag that sets it: `log.format` is `--log-format` (here without the dashes).
    #[must_use]
    pub fn flag(&self) -> String {
        self.path.replace(['.', '_'], "-")
    }

    /// The environment variable that sets it: `log.format` is `PEGAFLOW_LOG_FORMAT`.
    #[must_use]
    pub fn env(&self) -> String {
        format!(
            "PEGAFLOW_{}",
            self.path.replace('.', "_").to_ascii_uppercase()
        )
    }

    /// The first paragraph of the documentation, on one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let first = self.doc.split("\n\n").next().unwrap_or_default();
        first.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The default as a person writes it (`2GiB`, `none`).
    #[must_use]
    pub fn default_text(&self) -> String {
        self.default
            .as_ref()
            .map_or_else(|| "none".to_owned(), |value| self.kind.show(value))
    }
}

/// A value that can list the settings below it.
///
/// `self` is the default: what a leaf serialises to becomes [`Setting::default`].
pub trait Describe {
    /// Pushes one [`Setting`] for each leaf at or below `path`; `doc` is the doc comment of the field
    /// that holds this value.
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>);
}

/// All settings of a struct written with `settings!`, in the order of declaration.
#[must_use]
pub fn describe<T: Describe + Default>() -> Vec<Setting> {
    let mut out = vec![];
    T::default().describe("", "", &mut out);
    out
}

/// Pushes a leaf; for use in `impl Describe`.
pub fn leaf(
    path: &str,
    doc: &str,
    kind: Kind,
    default: Option<toml::Value>,
    out: &mut Vec<Setting>,
) {
    out.push(Setting {
        path: path.to_owned(),
        kind,
        default,
        doc: doc.trim().to_owned(),
    });
}

/// Joins a path and a key with a dot, without one at the start.
#[must_use]
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

macro_rules! describe_numbers {
    ($($ty:ty),*) => {$(
        impl Describe for $ty {
            fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
                let max = i64::try_from(<$ty>::MAX).unwrap_or(i64::MAX);
                let value = i64::try_from(*self).expect("a default fits TOML's integers");
                leaf(path, doc, Kind::number(path, max), Some(value.into()), out);
            }
        }
    )*};
}
describe_numbers!(u8, u16, u32, u64, usize);

impl Describe for f64 {
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
        leaf(path, doc, Kind::Number, Some((*self).into()), out);
    }
}

impl Describe for bool {
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
        leaf(path, doc, Kind::Bool, Some((*self).into()), out);
    }
}

impl Describe for String {
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
        leaf(path, doc, Kind::Text, Some(self.clone().into()), out);
    }
}

impl Describe for PathBuf {
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
        leaf(
            path,
            doc,
            Kind::Path,
            Some(self.to_string_lossy().as_ref().into()),
            out,
        );
    }
}

impl Describe for SocketAddr {
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
        leaf(path, doc, Kind::Address, Some(self.to_string().into()), out);
    }
}

/// Stands for the inner type when an `Option` is `None`: its kind is wanted, its value is not.
pub trait Sample {
    /// Any value of the type.
    fn sample() -> Self;
}
macro_rules! samples {
    ($($ty:ty = $value:expr),* $(,)?) => {$(
        impl Sample for $ty { fn sample() -> Self { $value } }
    )*};
}
samples!(
    u8 = 0,
    u16 = 0,
    u32 = 0,
    u64 = 0,
    usize = 0,
    f64 = 0.0,
    bool = false,
    String = String::new(),
    PathBuf = PathBuf::new(),
    SocketAddr = SocketAddr::from(([127, 0, 0, 1], 0)),
);

impl<T: Describe + Sample> Describe for Option<T> {
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
        let from = out.len();
        match self {
            Some(value) => value.describe(path, doc, out),
            None => {
                T::sample().describe(path, doc, out);
                out[from..]
                    .iter_mut()
                    .for_each(|setting| setting.default = None);
            }
        }
    }
}

/// A map of named sections: described once, with `*` for the name.
impl<T: Describe + Default> Describe for BTreeMap<String, T> {
    fn describe(&self, path: &str, doc: &str, out: &mut Vec<Setting>) {
        let from = out.len();
        T::default().describe(&join(path, "*"), doc, out);
        out[from..]
            .iter_mut()
            .for_each(|setting| setting.default = None);
    }
}

/// Declares a struct of settings: `pub name: Type = default,` with a doc comment on each field.
///
/// Gives the struct (serde, `deny_unknown_fields`, `default`), [`Default`] and [`Describe`].
macro_rules! settings {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident {
            $( $(#[doc = $field_doc:literal])* pub $field:ident: $ty:ty = $default:expr ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $( $(#[doc = $field_doc])* pub $field: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::describe::Describe for $name {
            fn describe(&self, path: &str, _: &str, out: &mut Vec<$crate::describe::Setting>) {
                $(
                    let doc = [$($field_doc),*].map(|line: &str| line.strip_prefix(' ').unwrap_or(line));
                    let path_of_field = $crate::describe::join(path, stringify!($field));
                    $crate::describe::Describe::describe(
                        &self.$field, &path_of_field, &doc.join("\n"), out,
                    );
                )*
            }
        }
    };
}
pub(crate) use settings;

/// Declares an enum that a setting chooses from: `Variant = "text",` with a doc comment on each; the
/// first is the default.
macro_rules! choices {
    (
        $(#[doc = $doc:literal])*
        pub enum $name:ident {
            $(#[doc = $first_doc:literal])* $first:ident = $first_text:literal,
            $( $(#[doc = $variant_doc:literal])* $variant:ident = $text:literal, )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $(#[doc = $first_doc])* #[default] #[serde(rename = $first_text)] $first,
            $( $(#[doc = $variant_doc])* #[serde(rename = $text)] $variant, )*
        }

        impl $crate::describe::Sample for $name {
            fn sample() -> Self { Self::$first }
        }

        impl $crate::describe::Describe for $name {
            fn describe(&self, path: &str, doc: &str, out: &mut Vec<$crate::describe::Setting>) {
                let kind = $crate::describe::Kind::Choice(&[
                    ($first_text, concat!($($first_doc),*)), $( ($text, concat!($($variant_doc),*)), )*
                ]);
                let default = toml::Value::try_from(*self).expect("a choice is a string");
                $crate::describe::leaf(path, doc, kind, Some(default), out);
            }
        }
    };
}
pub(crate) use choices;

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macros write public items")]
mod tests {
    use super::*;

    choices! {
        /// How loud.
        pub enum Loud {
            /// Hardly.
            Soft = "soft",
            /// Very.
            Hard = "hard",
        }
    }
    settings! {
        /// A section.
        pub struct Inner {
            /// Room.
            pub room_bytes: u64 = 2 << 30,
            /// Patience.
            pub wait_ms: u32 = 5,
            /// How loud.
            pub loud: Loud = Loud::Hard,
        }
    }
    settings! {
        /// Top.
        pub struct Outer {
            /// First line
            /// and second.
            ///
            /// More.
            pub name: Option<String> = None,
            /// Its section.
            pub inner: Inner = Inner::default(),
            /// Named ones.
            pub named: BTreeMap<String, Inner> = BTreeMap::new(),
        }
    }

    #[test]
    fn a_declaration_is_also_its_description() {
        let all = describe::<Outer>();
        let lines: Vec<_> = all
            .iter()
            .map(|s| {
                format!(
                    "{} {} {} {}",
                    s.path,
                    s.kind.name(),
                    s.default_text(),
                    s.summary()
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "name text none First line and second.",
                "inner.room_bytes size 2GiB Room.",
                "inner.wait_ms milliseconds 5 Patience.",
                "inner.loud choice hard How loud.",
                "named.*.room_bytes size none Room.",
                "named.*.wait_ms milliseconds none Patience.",
                "named.*.loud choice none How loud.",
            ]
        );
        assert_eq!(all[1].flag(), "inner-room-bytes");
        assert_eq!(all[1].env(), "PEGAFLOW_INNER_ROOM_BYTES");
    }
}
