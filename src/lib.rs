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

/// The allocator of static programs: links jemalloc, whose `malloc` and `free` take the place of musl's. musl's need more time, and
/// memory that is free within their groups stays with the process. As Rust's global allocator, jemalloc would make the
/// program larger, because each place that frees memory would compute its size.
#[cfg(target_env = "musl")]
#[used]
static FREE: unsafe extern "C" fn(*mut std::ffi::c_void) = tikv_jemalloc_sys::free;
