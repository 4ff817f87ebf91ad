// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The real `pegaflow-server`, started in a temporary directory.
#![cfg(feature = "server")]

mod config;
mod harness;
mod life;
mod monitoring;
mod pages;
mod work;
