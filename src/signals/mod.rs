//! Sources of task counts: metrics pages of nodes, AIStore's alert bits, a Prometheus server.
//!
//! This module has the exposition parser, the reading of a page, and the sampler. The sampler reads all nodes of a
//! policy, with jitter and limits. `decide` interprets the counts.

pub mod exposition;
mod lanes;
pub mod page;
mod prometheus;
mod sampler;
pub mod series;
#[cfg(test)]
mod simple;
mod watch;

pub use sampler::{Sampler, Samples};
pub use watch::{Permit, Source, Watch};
