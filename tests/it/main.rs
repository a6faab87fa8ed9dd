//! Black-box tests: a real API server, real Caddy, and a fake AIStore that is checked against recorded responses.
//!
//! All tests are one binary, so that they share one control plane. The control plane ends with the process that started it,
//! however that process ends.

#![allow(clippy::large_futures, clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, missing_docs)]

#[path = "../golden/mod.rs"]
mod golden;
mod support;

mod adaptive;
mod aistore;
mod api;
mod caddy;
mod config_map;
mod conflicts;
mod connections;
mod crash;
mod crd;
mod explored;
mod extending;
mod extremes;
mod faults;
mod flushes;
mod formats;
mod generated;
mod harm;
mod leader;
mod page;
mod path;
mod plugin;
mod probe;
mod references;
mod replay;
mod restart;
mod rights;
mod shards;
mod signals;
mod steady;
mod verify;
mod versions;
mod waves;
