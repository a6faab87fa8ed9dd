//! Adaptive control: from task counts to the openness of the limits. docs/control-law.md gives the reasons.

pub mod attribution;
pub mod config;
pub mod disturbance;
pub mod driver;
pub mod guard;
pub mod openness;
pub mod pause;
mod relax;
pub mod report;
pub mod signal;
pub mod standing;
pub mod state;
pub mod step;
pub mod step_size;
pub mod tighten;
pub mod tuning;
pub mod verdict;

#[cfg(test)]
mod tests;
