//! The decision part of the operator, built alone. It must compile without a client, a runtime or a clock. `make mutants` uses
//! this crate, because a change takes seconds to build here.

#![allow(clippy::duplicate_mod)] // Two tests hold files; elsewhere each is a separate crate.

pub use idleconn_api as api;

#[path = "../../src/decide/mod.rs"]
pub mod decide;
#[path = "../../src/pass/mod.rs"]
pub mod pass;
#[path = "../../src/simulate/mod.rs"]
pub mod simulate;

#[cfg(test)]
extern crate self as idleconn_operator;
#[cfg(test)]
#[path = "../decisions.rs"]
mod decisions;
#[cfg(test)]
#[path = "../said.rs"]
mod said;
