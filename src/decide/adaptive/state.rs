//! What adaptive control remembers. The status stores it: see [`crate::api::adaptive_state`].

pub use crate::api::adaptive_state::{
    AdaptiveState as State, Efficacy, Episode, Life, Lockout, MARKS, MOST_CHANGES, Pending, Watched, Way, rounded, rounded_slope,
};
