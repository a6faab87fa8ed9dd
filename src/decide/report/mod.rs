//! Reports: the conditions and Events of a policy, and the state of each node.

pub mod condition;
pub mod node_status;
pub mod status;
pub mod update;
