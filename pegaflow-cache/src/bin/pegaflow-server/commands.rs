// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! From the command line to what was asked for.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ArgMatches;
use pegaflow_cache::probe::Report;
use pegaflow_cache::server::{ConfigError, Layers, Settings, load};
use pegaflow_cache::{describe, metrics, server};

use crate::run;

/// Exit status for wrong flags or configuration.
pub(crate) const USAGE: u8 = 2;
/// Exit status when the server could not start or go on.
pub(crate) const FAILED: u8 = 1;

/// Does what the command line says.
pub(crate) fn dispatch(matches: &ArgMatches) -> ExitCode {
    match matches.subcommand() {
        Some(("probe", matches)) => probe(matches.get_flag("json")),
        Some(("describe", _)) => describe_all(),
        Some(("top", matches)) => top(matches),
        _ => serve(matches),
    }
}

fn serve(matches: &ArgMatches) -> ExitCode {
    let mut layers = Layers::new::<Settings>();
    let settings = match settings(matches, &mut layers) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    for warning in layers.warnings() {
        complain(&format!("warning: {warning}"));
    }
    if matches.get_flag("print-config") {
        return match server::print::toml(&settings, &layers) {
            Ok(text) => say(&text),
            Err(error) => fail(&error),
        };
    }
    if matches.get_flag("check-config") {
        return say("the configuration is good\n");
    }
    let ready_file = matches.get_one::<PathBuf>("ready-file");
    match run::run(&settings, ready_file.map(PathBuf::as_path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

/// The settings in effect: flags over environment over file over defaults, checked.
fn settings(matches: &ArgMatches, layers: &mut Layers) -> Result<Settings, ConfigError> {
    let from_env = std::env::var_os(load::CONFIG_ENV).map(PathBuf::from);
    let file = matches.get_one::<PathBuf>("config").cloned().or(from_env);
    let paths: Vec<_> = layers.schema().iter().map(|s| s.path.clone()).collect();
    let flag = |path: &String| {
        let value = matches.try_get_one::<String>(path).ok()??;
        Some((path.clone(), value.clone()))
    };
    let flags: Vec<_> = paths.iter().filter_map(flag).collect();
    load::load(layers, file.as_deref(), &flags)
}

fn probe(json: bool) -> ExitCode {
    let report = Report::of_this_machine();
    if !json {
        return say(&report.text());
    }
    say_json(&report)
}

fn top(matches: &ArgMatches) -> ExitCode {
    let Some(address) = matches.get_one::<std::net::SocketAddr>("http") else {
        return ExitCode::from(USAGE);
    };
    let token = match matches
        .get_one::<PathBuf>("token-file")
        .map(std::fs::read_to_string)
    {
        Some(Err(error)) => return fail(&error),
        Some(Ok(text)) => text.lines().next().map(|line| line.trim().to_owned()),
        None => None,
    };
    let number = |name| matches.get_one::<u64>(name).copied().unwrap_or(0);
    let every = std::time::Duration::from_millis(number("every-ms").max(100));
    match crate::top::run(*address, token.as_deref(), every, number("count")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            complain(&text);
            ExitCode::from(FAILED)
        }
    }
}

fn describe_all() -> ExitCode {
    let settings = describe::describe::<Settings>();
    let settings: Vec<_> = settings.iter().map(|s| serde_json::json!({
        "path": s.path, "type": s.kind.name(), "choices": s.kind.choices(), "default": s.default_text(),
        "flag": format!("--{}", s.flag()), "env": s.env(), "doc": s.doc,
    })).collect();
    say_json(&serde_json::json!({ "settings": settings, "metrics": metrics::TABLE }))
}

fn say_json(value: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => say(&(text + "\n")),
        Err(error) => fail(&error),
    }
}

/// Prints to standard output; a reader that went away (`| head`) is no failure.
fn say(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(&error),
        _ => ExitCode::SUCCESS,
    }
}

fn refuse(error: &ConfigError) -> ExitCode {
    for problem in &error.problems {
        complain(&problem.to_string());
    }
    ExitCode::from(USAGE)
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    complain(&text);
    ExitCode::from(FAILED)
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "pegaflow-server: {text}");
}
