//! What adaptive control remembers. The status stores it: see [`crate::api::adaptive_state`].

pub use crate::api::adaptive_state::{
    AdaptiveState as State, Efficacy, Episode, Lockout, MARKS, MAX_CHANGES, Pending, UptimeCurve, Watched, Way, rounded,
    rounded_slope,
};
pub use crate::api::guarded::{Guarded, RateWindow};
