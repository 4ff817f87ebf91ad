// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Files that settings name: what stands in the way of reading one is told in a sentence.

use std::path::Path;

/// Reads a file that a setting names.
///
/// # Errors
/// A sentence that says what stands in the way.
pub(crate) fn read_file(path: &Path) -> Result<String, String> {
    let shown = path.display();
    if path.is_dir() {
        return Err(format!("{shown} is a directory, a file is wanted"));
    }
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{shown} does not exist"),
        std::io::ErrorKind::PermissionDenied => format!("{shown} may not be read by this user"),
        std::io::ErrorKind::InvalidData => format!("{shown} is not text in UTF-8"),
        _ => format!("{shown} cannot be read: {error}"),
    })
}

/// The token in a token file's text.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}
