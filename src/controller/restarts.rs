//! Whether nodes are restarted for limits that they read only when they start.

use crate::api::{
    IdleConnectionPolicySpec,
    adaptive::{RestartFor, RestartPolicy},
};

/// Whether restarts are made: for what Git declares, or for what the loop moves.
pub fn allowed(spec: &IdleConnectionPolicySpec, for_loop: bool) -> bool {
    spec.restart
        .as_ref()
        .is_some_and(|restart| restart.policy == RestartPolicy::Rolling && (!for_loop || restart.for_ == RestartFor::All))
}
