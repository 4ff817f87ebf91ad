// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Reads the settings of this process: the shell around [`Layers`].

use std::path::{Path, PathBuf};

use super::layers::Layers;
use super::problem::{ConfigError, Origin, Problem};
use super::room;
use super::settings::Settings;
use crate::describe::read_file;

/// Variable that names the configuration file where no flag does.
pub const CONFIG_ENV: &str = "PEGAFLOW_CONFIG";

/// Variables of other parts of PegaFlow, which are no settings of the server.
const OTHER_ENV: [&str; 1] = [CONFIG_ENV];

/// Settings from `file`, this process's environment and `flags` (path, text), resolved and checked.
///
/// # Errors
/// Everything that is wrong with them.
pub fn load(
    layers: &mut Layers,
    file: Option<&Path>,
    flags: &[(String, String)],
) -> Result<Settings, ConfigError> {
    if let Some(file) = file {
        layers.file(file, &config_text(file)?);
    }
    let vars = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        // A value that is no UTF-8 is shown with replacement characters, and refused where it matters.
        Some((name, value.to_string_lossy().into_owned()))
    });
    layers.env(vars, &OTHER_ENV);
    for (path, text) in flags {
        layers.flag(path, text);
    }
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let uid = rustix::process::getuid().as_raw();
    let settings = layers.settings::<Settings>()?.resolved(
        uid,
        runtime_dir.filter(|dir| dir.is_absolute() && dir.is_dir()),
    );
    settings.validate(layers);
    room::check(&settings, layers);
    layers.settings::<Settings>()?;
    Ok(settings)
}

fn config_text(file: &Path) -> Result<String, ConfigError> {
    read_file(file).map_err(|what| {
        let fix = match file {
            dir if dir.is_dir() => {
                format!("name the file: {}", dir.join("pegaflow.toml").display())
            }
            _ => "`pegaflow-server --print-config > FILE` writes one to start from".to_owned(),
        };
        let origin = Origin::Flag("--config".to_owned());
        ConfigError {
            problems: vec![Problem {
                origin,
                path: String::new(),
                what,
                fix,
            }],
        }
    })
}
