// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The command line. A flag for each setting comes from the settings' own description, so there is
//! no second list to keep.

use clap::{Arg, ArgAction, Command, value_parser};
use pegaflow_cache::describe::{Kind, Setting, describe};
use pegaflow_cache::server::Settings;
use std::path::PathBuf;

/// Settings that `-h` shows; `--help` shows all.
const COMMON: [&str; 9] = [
    "socket",
    "tcp",
    "http",
    "name",
    "pool.bytes",
    "pool.dir",
    "ssd.path",
    "ssd.bytes",
    "log.filter",
];

const ABOUT: &str =
    "Keeps the KV-cache blocks of LLM inference in shared memory and serves them to engines.";

const LONG_ABOUT: &str = "\
Keeps the KV-cache blocks of LLM inference in shared memory and serves them to engines.\n\n\
Workers of an inference engine connect over a Unix socket, map the pool, and save and load blocks \
themselves; the server says which blocks are there, hands out room, and evicts. The pool outlives the \
server: start it again with the same settings and the blocks are still there.";

const EXAMPLES: &str = "\
Examples:
  pegaflow-server                                      4GiB pool, this user's default socket
  pegaflow-server --pool-bytes 64GiB --name llama      a larger one, beside others
  pegaflow-server --config node.toml --check-config    is this file right?
  pegaflow-server --print-config > node.toml           a commented file to start from
  pegaflow-server probe                                what this machine offers
  pegaflow-server top                                  what a running server does";

const LONG_EXAMPLES: &str = "\
Where a setting comes from, the first that has it:
  1. a flag                  --pool-bytes 64GiB
  2. the environment         PEGAFLOW_POOL_BYTES=64GiB
  3. the configuration file  [pool] bytes = \"64GiB\"
  4. the default

Signals:
  SIGTERM, SIGINT   stop taking requests, let running ones end (shutdown.drain_ms), exit with 0;
                    a second one exits at once

Exit status:
  0  stopped as asked           2  wrong flags or configuration
  1  could not start or go on   128 + signal  ended by a second signal";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("pegaflow-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .long_about(LONG_ABOUT)
        .after_help(EXAMPLES)
        .after_long_help(format!("{EXAMPLES}\n\n{LONG_EXAMPLES}"))
        .args_conflicts_with_subcommands(true)
        .args_override_self(true)
        .args(own())
        .args(
            describe::<Settings>()
                .iter()
                .filter(|s| !s.path.contains('*'))
                .map(flag),
        )
        .subcommand(probe())
        .subcommand(top())
        .subcommand(describe_command())
}

fn own() -> [Arg; 4] {
    [
        Arg::new("config")
            .long("config")
            .short('c')
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Read settings from this TOML file [env: PEGAFLOW_CONFIG]"),
        Arg::new("check-config")
            .long("check-config")
            .action(ArgAction::SetTrue)
            .help("Check the settings, say what is wrong with them, and exit"),
        Arg::new("print-config")
            .long("print-config")
            .action(ArgAction::SetTrue)
            .help("Print the settings in effect as a commented TOML file, and exit"),
        Arg::new("ready-file")
            .long("ready-file")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Write the addresses in use to this file once the server is ready")
            .long_help(
                "Write the addresses in use to this file once the server is ready.\n\n\
                 One JSON object: socket, tcp, http, pid. The file appears whole, or not at all. \
                 With /dev/fd/N the line goes to an open descriptor. Under systemd (Type=notify) the \
                 server tells readiness by itself.",
            ),
    ]
}

fn flag(setting: &Setting) -> Arg {
    let (path, name) = (setting.path.clone(), setting.flag());
    let heading = match setting.path.split_once('.') {
        None => "Node".to_owned(),
        Some((section, _)) => capitalised(section),
    };
    let default = match &setting.default {
        Some(_) => format!("[default: {}] ", setting.default_text()),
        None => String::new(),
    };
    let notes = format!("{default}[env: {}]", setting.env());
    let mut long = format!("{}\n", setting.doc);
    if let Kind::Choice(words) = setting.kind {
        for (word, doc) in words {
            long.push_str(&format!("\n  {word:<8} {}", doc.trim()));
        }
        long.push('\n');
    }
    let arg = Arg::new(path)
        .long(name)
        .value_name(setting.kind.placeholder())
        .help_heading(heading)
        .hide_short_help(!COMMON.contains(&setting.path.as_str()))
        .help(format!("{} {notes}", setting.summary()))
        .long_help(format!("{long}\n{notes}"));
    match setting.kind {
        Kind::Bool => arg
            .num_args(0..=1)
            .default_missing_value("true")
            .require_equals(true),
        _ => arg,
    }
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|c| c.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

fn json(help: &'static str) -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help(help)
}

fn probe() -> Command {
    Command::new("probe")
        .about("Say what this machine offers PegaFlow, and what to do about what is missing")
        .long_about(
            "Say what this machine offers PegaFlow, and what to do about what is missing.\n\n\
             Looks at memory, NUMA nodes, huge pages, limits, io_uring, drives, GPUs and RDMA devices. \
             Changes nothing. PegaFlow works without all of it; what is there makes it faster.",
        )
        .arg(json("Print facts and judgements as one JSON object"))
}

fn top() -> Command {
    let number = |name, what| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .value_parser(value_parser!(u64))
            .help(what)
    };
    Command::new("top")
        .about("Show what a running server does, every second")
        .arg(
            Arg::new("http")
                .long("http")
                .value_name("IP:PORT")
                .value_parser(value_parser!(std::net::SocketAddr))
                .default_value("127.0.0.1:7411")
                .help("HTTP address of the server"),
        )
        .arg(
            Arg::new("token-file")
                .long("token-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("File with the token that the server wants"),
        )
        .arg(number("every-ms", "Time between two screens").default_value("1000"))
        .arg(number("count", "Screens to show; 0 for ever").default_value("0"))
}

fn describe_command() -> Command {
    Command::new("describe")
        .about("Print every setting and metric as JSON, for documentation and tools")
        .hide(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_common_setting_exists() {
        let all = describe::<Settings>();
        for path in COMMON {
            assert!(all.iter().any(|s| s.path == path), "{path}");
        }
    }
}
