// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Rules about packages: who may depend on whom, and what a package on crates.io must say of itself.

use std::collections::BTreeMap;

use cargo_metadata::Package;

use crate::tidy::Findings;
use crate::workspace::Workspace;

/// The arrows of the design: a crate and the crates of ours it may depend on. A crate that is not named has none;
/// `xtask` is not on the map.
const ARROWS: &[(&str, &[&str])] = &[
    ("pegaflow-mem", &[]),
    ("pegaflow-meta", &[]),
    ("pegaflow-ssd", &["pegaflow-mem"]),
    ("pegaflow-transfer", &["pegaflow-mem"]),
    (
        "pegaflow-cache",
        &[
            "pegaflow-mem",
            "pegaflow-meta",
            "pegaflow-ssd",
            "pegaflow-transfer",
        ],
    ),
    (
        "pegaflow-pd",
        &["pegaflow-mem", "pegaflow-meta", "pegaflow-transfer"],
    ),
    (
        "pegaflow-py",
        &["pegaflow-cache", "pegaflow-mem", "pegaflow-pd"],
    ),
];

/// The longest README that is certainly still a stub, in bytes.
const README_STUB_BYTES: usize = 400;

pub(super) fn arrows(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let members: Vec<&str> = ws.packages().map(|p| p.name.as_str()).collect();
    for package in ws.packages().filter(|p| p.name.as_str() != "xtask") {
        let name = package.name.as_str();
        let allowed = ARROWS.iter().find(|(from, _)| *from == name);
        let Some((_, allowed)) = allowed else {
            findings.error(format!("{name} is not on the map of the design"));
            continue;
        };
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            if members.contains(&to) && to != name && !allowed.contains(&to) {
                findings.error(format!("{name} must not depend on {to}"));
            }
        }
    }
    Ok(())
}

pub(super) fn versions(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let versions: BTreeMap<&str, String> = ws
        .public()
        .map(|p| (p.name.as_str(), p.version.to_string()))
        .collect();
    let mut distinct: Vec<&String> = versions.values().collect();
    distinct.sort();
    distinct.dedup();
    if distinct.len() > 1 {
        findings.error(format!("one version for all crates: {versions:?}"));
    }
    for package in ws.public() {
        for dependency in &package.dependencies {
            let Some(version) = versions.get(dependency.name.as_str()) else {
                continue;
            };
            // `*` is what a dependency without a version means: fine between tests, unpublishable otherwise.
            let wanted = dependency.req.to_string();
            let dev = dependency.kind == cargo_metadata::DependencyKind::Development;
            if wanted != format!("^{version}") && !(dev && wanted == "*") {
                findings.error(format!(
                    "{} asks for {} {wanted}, which is {version} here",
                    package.name, dependency.name
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn front_page(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    for package in ws.public() {
        let missing = missing(package);
        if !missing.is_empty() {
            findings.error(format!("{} lacks {}", package.name, missing.join(", ")));
        }
        if package.keywords.len() > 5 || package.keywords.iter().any(|k| k.len() > 20) {
            findings.error(format!(
                "{}: crates.io takes five keywords of 20 letters",
                package.name
            ));
        }
        let readme = package
            .readme()
            .and_then(|path| std::fs::read_to_string(path).ok());
        if readme.is_none_or(|text| text.len() <= README_STUB_BYTES) {
            findings.warn(format!(
                "{}: the README is a stub, it is the front page on crates.io",
                package.name
            ));
        }
    }
    Ok(())
}

/// The fields of the manifest that a public crate must have and this one has not.
fn missing(package: &Package) -> Vec<&'static str> {
    let present = [
        (
            "description",
            package.description.as_ref().is_some_and(|d| d.len() > 20),
        ),
        ("license", package.license.as_deref() == Some("Apache-2.0")),
        (
            "LICENSE (a link to ../LICENSE)",
            package.manifest_path.with_file_name("LICENSE").exists(),
        ),
        ("readme", package.readme().is_some_and(|path| path.exists())),
        ("repository", package.repository.is_some()),
        ("rust-version", package.rust_version.is_some()),
        ("keywords", !package.keywords.is_empty()),
        ("categories", !package.categories.is_empty()),
    ];
    present
        .into_iter()
        .filter(|(_, there)| !there)
        .map(|(field, _)| field)
        .collect()
}

/// Crates that may hold no unsafe code at all, and say so to the compiler.
const SAFE: &[&str] = &["pegaflow-cache", "pegaflow-meta", "pegaflow-pd", "xtask"];

/// Every crate takes the workspace's lints, and the crates without unsafe code forbid it.
pub(super) fn lints(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    for package in ws.packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            findings.error(format!("{}: no `[lints] workspace = true`", package.name));
        }
        let safe = SAFE.contains(&package.name.as_str());
        let programs = package.targets.iter();
        for target in programs.filter(|t| safe && (t.is_lib() || t.is_bin())) {
            if !std::fs::read_to_string(&target.src_path)?.contains("#![forbid(unsafe_code)]") {
                findings.error(format!("{}: no `#![forbid(unsafe_code)]`", target.src_path));
            }
        }
    }
    Ok(())
}

/// Features add, and the default adds nothing that needs more of the machine than a Rust and a C compiler.
pub(super) fn default_features(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    const HARDWARE: &[&str] = &["verbs", "etcd", "python"];
    for package in ws.public() {
        let default = package.features.get("default").into_iter().flatten();
        for feature in default.filter(|f| HARDWARE.contains(&f.as_str())) {
            findings.error(format!(
                "{}: `{feature}` must not be a default feature",
                package.name
            ));
        }
        for negative in package.features.keys().filter(|f| f.starts_with("no-")) {
            findings.error(format!(
                "{}: feature `{negative}` takes away: features only add",
                package.name
            ));
        }
    }
    Ok(())
}
