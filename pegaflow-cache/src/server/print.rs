// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Settings as a commented TOML file: `--print-config`.
//!
//! Invariant: what is printed, read as a file, gives the same settings.

use std::fmt::Write;

use serde::Serialize;

use super::layers::{Layers, escape};
use super::problem::Origin;
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
    let split = |s: &'_ Setting| Some(s.path.split_once(".*.")?.0.to_owned());
    let mut sections: Vec<_> = layers.schema().iter().filter_map(split).collect();
    sections.dedup();
    for above in sections {
        let names = find(values, &above).and_then(toml::Value::as_table);
        for (name, table) in names.into_iter().flatten() {
            let _ = writeln!(out, "\n[{above}.{}]", key_text(name));
            let prefix = format!("{above}.*.");
            for setting in layers.schema() {
                let Some(key) = setting.path.strip_prefix(&prefix) else {
                    continue;
                };
                let path = format!("{above}.{}.{key}", escape(name));
                let setting = Setting {
                    path,
                    ..setting.clone()
                };
                line(out, &setting, key, table.get(key), layers);
            }
        }
    }
}

/// A key as TOML writes it: bare where it can be, a basic string (as JSON writes one) where not.
fn key_text(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !key.is_empty() && key.chars().all(bare) {
        return key.to_owned();
    }
    serde_json::Value::from(key)
        .to_string()
        .replace('\u{7f}', "\\u007f")
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
    use crate::core::TenantSettings;
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
        fn any_tenant()(
            bytes in proptest::option::of(0..=u64::MAX >> 1),
            ssd_bytes in proptest::option::of(0..=u64::MAX >> 1),
            weight: u32,
        ) -> TenantSettings {
            TenantSettings { bytes_max: bytes, ssd_bytes_max: ssd_bytes, weight }
        }
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
            tenants in proptest::collection::btree_map("([a-z.\"'\n\u{7f} ]|\\PC){0,4}", any_tenant(), 0..3),
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
            s.cache.tenants = tenants;
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
