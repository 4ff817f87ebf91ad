//! Development tasks of the PegaFlow workspace.
#![forbid(unsafe_code)]
fn main() {}
