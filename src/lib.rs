//! **idleconn-operator** manages how HTTP connections may idle.
//!
//! Data goes one way:
//!
//! ```text
//! API server --watch--> policies --------------+
//! targets    --nodes--> what is stored, in use +--> gather --> decide --> Plan --> apply --> report
//!                                                              (equal => no write at all)
//! ```
//!
//! - [`api`]: the public types. Pure.
//! - [`decide`]: what to do and what to say of it. Pure.
//! - [`simulate`]: the same decisions without a cluster, over models and recordings. Pure.
//! - [`targets`]: the kinds of server that can be governed, behind one trait.
//! - [`signals`]: where task counts come from.
//! - [`pool`]: the one place from which requests to nodes leave.
//! - [`probe`]: how long servers keep idle connections, measured from outside.
//! - [`controller`]: the shell: watch, gather, apply, report.
//! - [`leader`]: which of several processes acts.
//! - [`cli`]: the commands of `kubectl idleconn`.
//! - [`serve`], [`metrics`], [`telemetry`], [`config`], [`clock`]: what an operator's operator sees and sets.

pub mod api;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod decide;
pub mod leader;
pub mod metrics;
pub mod pool;
pub mod probe;
pub mod serve;
pub mod signals;
pub mod simulate;
pub mod targets;
pub mod telemetry;
