//! The part of the operator that decides, built alone: it compiles without a client, a runtime or a clock, or it is not pure.
//! `make mutants` works here, because one change takes seconds to build instead of the whole crate's.

#![allow(clippy::duplicate_mod)] // Two tests hold files; elsewhere each is a crate of its own.

pub use idleconn_api as api;

#[path = "../../src/decide/mod.rs"]
pub mod decide;
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
