//! **idleconn-operator** manages limits of idle HTTP connections.
//!
//! Data goes one way:
//!
//! ```text
//! API server --watch--> policies --------------+
//! targets    --nodes--> what is stored, in use +--> pass: gather --> decide --> Plan --> apply --> report
//!                                                              (equal => no write at all)
//! ```
//!
//! - [`api`]: the public types. Pure.
//! - [`decide`]: decides what to write and what to report. Pure.
//! - [`pass`]: the work for one policy, in its order, over a trait with every request. Pure.
//! - [`simulate`]: the same decisions without a cluster, over models and recordings. Pure.
//! - [`targets`]: the supported kinds of server, behind one trait.
//! - [`signals`]: the sources of task counts.
//! - [`pool`]: requests to nodes, to Prometheus and to the API server.
//! - [`probe`]: measures from outside how long servers keep idle connections.
//! - [`controller`]: watches policies, begins passes, and carries out their requests.
//! - [`leader`]: leader election; [`shards`]: an actor for each shard.
//! - [`cli`]: the commands of `kubectl idleconn`.
//! - [`serve`], [`metrics`], [`telemetry`], [`config`], [`clock`]: the operator's own interfaces and settings.

pub mod api;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod decide;
pub mod leader;
pub mod metrics;
pub mod pass;
pub mod pool;
pub mod probe;
pub mod serve;
pub mod shards;
pub mod signals;
pub mod simulate;
pub mod targets;
pub mod telemetry;

/// The allocator of static programs. musl's needs more time, and memory that is free within its groups stays with the process.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
