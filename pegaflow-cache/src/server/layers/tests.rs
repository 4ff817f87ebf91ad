// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::server::Settings;

fn layers(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Layers {
    let mut layers = Layers::new::<Settings>();
    layers.file(Path::new("p.toml"), toml);
    layers.env(
        env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        &["PEGAFLOW_CONFIG"],
    );
    for (path, text) in flags {
        layers.flag(path, text);
    }
    layers
}

fn good(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Settings {
    layers(toml, env, flags)
        .settings()
        .expect("a good configuration")
}

/// The message a bad file gives.
fn refused(toml: &str, expect: &str) {
    let error = layers(toml, &[], &[])
        .settings::<Settings>()
        .expect_err(toml);
    assert_eq!(error.to_string(), expect, "{toml}");
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let toml = "[pool]\nbytes = \"1GiB\"\n[log]\nformat = \"json\"\nfilter = \"warn\"";
    let env = [
        ("PEGAFLOW_POOL_BYTES", "2GiB"),
        ("PEGAFLOW_LOG_FILTER", "debug"),
    ];
    let settings = good(toml, &env, &[("pool.bytes", "3GiB")]);
    assert_eq!(settings.pool.bytes, 3 << 30);
    assert_eq!(settings.log.filter, "debug");
    assert_eq!(
        settings.log.format,
        crate::server::settings::LogFormat::Json
    );
    assert_eq!(settings.shutdown.drain_ms, 5_000);
    assert_eq!(good("", &[], &[]), Settings::default());
}

#[test]
fn rust_log_counts_when_nothing_else_sets_the_filter() {
    let rust_log = ("RUST_LOG", "trace");
    assert_eq!(good("", &[rust_log], &[]).log.filter, "trace");
    assert_eq!(
        good("log.filter = \"warn\"", &[rust_log], &[]).log.filter,
        "warn"
    );
    let env = [rust_log, ("PEGAFLOW_LOG_FILTER", "error")];
    assert_eq!(good("", &env, &[]).log.filter, "error");
    let env = [env[1], env[0]];
    assert_eq!(good("", &env, &[]).log.filter, "error");
}

#[test]
fn an_unknown_key_is_refused_and_the_nearest_is_named() {
    refused(
        "[pool]\nbytez = 1",
        "p.toml:2: `pool.bytez`: no setting has this name\n  fix: did you mean `pool.bytes`?",
    );
    refused(
        "\n\n[pol]\nbytes = 1",
        "p.toml:3: `pol`: no setting has this name\n  fix: did you mean `pool`?",
    );
    refused(
        "drain_ms = 1",
        "p.toml:1: `drain_ms`: no setting has this name\n  fix: did you mean `shutdown.drain_ms`?",
    );
    refused(
        "elephants = 1",
        "p.toml:1: `elephants`: no setting has this name\n  fix: `pegaflow-server --print-config` lists every setting",
    );
}

#[test]
fn a_bad_value_names_its_line_and_what_to_write() {
    refused(
        "[pool]\n# room\nbytes = \"2G\"",
        "p.toml:3: `pool.bytes`: `2G` is ambiguous; write `2GiB` (powers of 1024) or `2GB` (powers of 1000)",
    );
    refused(
        "shutdown.drain_ms = \"5s\"",
        "p.toml:1: `shutdown.drain_ms`: `5s` has a unit, but the name says milliseconds; write 5000",
    );
    refused(
        "pool.bytes = -1",
        "p.toml:1: `pool.bytes`: -1 is negative; a size is not",
    );
    refused(
        "runtime.threads = 99999999999",
        "p.toml:1: `runtime.threads`: 99999999999 is out of range; write 0 to 4294967295",
    );
    refused(
        "pool = 5",
        "p.toml:1: `pool`: this is a section, not a value\n  fix: write `[pool]` on a line of its own and its settings below it",
    );
    refused(
        "[http]\nport = 1",
        "p.toml:1: `http`: a section found; write an address such as \"127.0.0.1:7410\"",
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let error = layers(
        "socket = 3\nx = 1",
        &[("PEGAFLOW_POOL_BYTES", "1G")],
        &[("tcp", "7")],
    )
    .settings::<Settings>()
    .expect_err("all wrong");
    assert_eq!(error.problems.len(), 4, "{error}");
    assert!(
        error
            .to_string()
            .contains("environment variable PEGAFLOW_POOL_BYTES: "),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("--tcp: `tcp`: `7` is only a port"),
        "{error}"
    );
}

#[test]
fn tenants_have_sections_with_names_of_their_own() {
    let toml =
        "[cache.tenants.acme]\nbytes_max = \"1GiB\"\n[cache.tenants.\"team.eu\"]\nweight = 3";
    let tenants = good(toml, &[], &[]).cache.tenants;
    assert_eq!(tenants["acme"].bytes_max, Some(1 << 30));
    assert_eq!(tenants["team.eu"].weight, 3);
    refused(
        "[cache.tenants.\"a.b\"]\nwait = 3",
        "p.toml:2: `cache.tenants.a.b.wait`: no setting has this name\n  fix: `pegaflow-server --print-config` lists every setting",
    );
    refused(
        "[cache.tenants]\nacme = 3",
        "p.toml:2: `cache.tenants.acme`: this is a section, not a value\n  fix: write `[cache.tenants.acme]` on a line of its own and its settings below it",
    );
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let env = [
        ("PEGAFLOW_POLL_BYTES", "1"),
        ("PEGAFLOW_CONFIG", "x"),
        ("PATH", "/bin"),
    ];
    let layers = layers("", &env, &[]);
    layers.settings::<Settings>().expect("good all the same");
    let warnings: Vec<_> = layers.warnings().iter().map(ToString::to_string).collect();
    let expect = "environment variable PEGAFLOW_POLL_BYTES: no setting has this name; ignored\n  fix: did you mean `PEGAFLOW_POOL_BYTES`?";
    assert_eq!(warnings, [expect]);
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let error = layers("[pool]\nbytes = = 3", &[], &[])
        .settings::<Settings>()
        .expect_err("no TOML");
    assert!(error.to_string().starts_with("p.toml:2: "), "{error}");
}

proptest::proptest! {
    #[test]
    fn any_file_is_read_or_refused(text in "(\\[?[a-z_.]{1,8}\\]?( = [0-9a-z\"\\[{.-]{1,6})?\n?){0,4}") {
        let _ = layers(&text, &[], &[]).settings::<Settings>();
    }
}
