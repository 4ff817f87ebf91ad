// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Settings as a commented TOML file: `--print-config`.
//!
//! Invariant: what is printed, read as a file, gives the same settings.

use std::fmt::Write;

use serde::Serialize;

use super::layers::{Layers, Origin};
use crate::describe::Setting;

/// `settings` as TOML, each with its documentation and, if it is not the default, where it was set.
/// What is absent stands there as a comment.
///
/// # Errors
/// Never for settings declared with `settings!`; a type whose form TOML does not know gives its error.
pub fn toml<T: Serialize>(settings: &T, layers: &Layers) -> Result<String, toml::ser::Error> {
    let values = toml::Table::try_from(settings)?;
    let mut out = String::new();
    let mut section = "";
    // TOML wants the keys of the root before the first section.
    let (root, rest): (Vec<_>, Vec<_>) =
        layers.schema().iter().partition(|s| !s.path.contains('.'));
    for setting in root.into_iter().chain(rest) {
        let (above, key) = setting.path.rsplit_once('.').unwrap_or(("", &setting.path));
        if above.contains('*') {
            continue;
        }
        if above != section {
            let _ = writeln!(out, "{}[{above}]", if out.is_empty() { "" } else { "\n" });
            section = above;
        }
        line(&mut out, setting, key, find(&values, &setting.path), layers);
    }
    named(&mut out, &values, layers);
    Ok(out)
}

fn line(
    out: &mut String,
    setting: &Setting,
    key: &str,
    value: Option<&toml::Value>,
    layers: &Layers,
) {
    let _ = writeln!(out, "# {}", setting.summary());
    let origin = match layers.origin(&setting.path) {
        Origin::Default => String::new(),
        origin => format!("  # from {origin}"),
    };
    let _ = match value {
        Some(value) => writeln!(out, "{key} = {}{origin}", setting.kind.show_toml(value)),
        None => writeln!(out, "# {key} ="),
    };
}

/// Sections with names of the user's own (`*` in the schema): those that are there.
fn named(out: &mut String, values: &toml::Table, layers: &Layers) {
    let mut done = "";
    for setting in layers.schema() {
        let Some((above, _)) = setting.path.split_once(".*.") else {
            continue;
        };
        if above == done {
            continue;
        }
        done = above;
        let Some(names) =
            find(values, above).filter(|v| v.as_table().is_some_and(|t| !t.is_empty()))
        else {
            continue;
        };
        let root = above.rsplit('.').fold(names.clone(), |inner, part| {
            toml::Table::from_iter([(part.to_owned(), inner)]).into()
        });
        let _ = write!(out, "\n{root}");
    }
}

fn find<'a>(table: &'a toml::Table, path: &str) -> Option<&'a toml::Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((head, rest)) => find(table.get(head)?.as_table()?, rest),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::*;
    use crate::server::Settings;
    use crate::server::settings::LogFormat;

    fn round_trip(settings: &Settings) {
        let text = toml(settings, &Layers::new::<Settings>()).expect("settings have a TOML form");
        let mut layers = Layers::new::<Settings>();
        layers.file(Path::new("printed.toml"), &text);
        let back: Settings = layers.settings().unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(&back, settings, "{text}");
    }

    #[test]
    fn the_defaults_are_printed_with_their_documentation() {
        let text = toml(&Settings::default(), &Layers::new::<Settings>()).expect("TOML");
        assert!(
            text.contains(
                "# Bytes of host memory for KV blocks, over all NUMA nodes.\nbytes = \"4GiB\"\n"
            ),
            "{text}"
        );
        assert!(text.contains("\n# socket =\n"), "{text}");
        round_trip(&Settings::default());
    }

    #[test]
    fn a_value_says_where_it_was_set() {
        let mut layers = Layers::new::<Settings>();
        layers.flag("pool.bytes", "8GiB");
        let settings: Settings = layers.settings().expect("good");
        let text = toml(&settings, &layers).expect("TOML");
        assert!(
            text.contains("bytes = \"8GiB\"  # from --pool-bytes\n"),
            "{text}"
        );
    }

    prop_compose! {
        fn any_settings()(
            name: String,
            socket in proptest::option::of("\\PC{0,12}"),
            tcp: Option<std::net::SocketAddrV4>,
            http: std::net::SocketAddr,
            token in proptest::option::of("[a-z\"\\\\\n#=']{1,9}"),
            insecure: bool,
            bytes in 0..=u64::MAX >> 1,
            json: bool,
            filter in "\\PC{0,9}",
            threads: u32,
            drain_ms: u32,
        ) -> Settings {
            let mut s = Settings { name, http, insecure, ..Settings::default() };
            // An IPv6 scope or flow label has no text form that parses back.
            if let std::net::SocketAddr::V6(v6) = &mut s.http {
                v6.set_flowinfo(0);
                v6.set_scope_id(0);
            }
            s.socket = socket.map(PathBuf::from);
            s.tcp = tcp.map(Into::into);
            s.token_file = token.map(PathBuf::from);
            s.pool.bytes = bytes;
            s.log.format = if json { LogFormat::Json } else { LogFormat::Text };
            s.log.filter = filter;
            s.runtime.threads = threads;
            s.shutdown.drain_ms = drain_ms;
            s
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_the_same(settings in any_settings()) {
            round_trip(&settings);
        }
    }
}
