//! Where task counts come from: metrics pages of nodes, AIStore's alert bits, a Prometheus server.
//!
//! Lives here: the exposition parser, what is read from a page, and the sampler that asks all nodes of a policy, jittered and
//! bounded. What a count means is decided elsewhere.

pub mod exposition;
pub mod page;
mod prometheus;
mod sampler;
pub mod series;
#[cfg(test)]
mod simple;

pub use sampler::{Node, Permit, Sampler, Samples, Source, Watch};
