//! Conditions and Events: how they are built and read back.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::{
    IdleConnectionPolicyStatus,
    conditions::{ConditionType, EventReason, Reason, State},
    status::MESSAGE_LENGTH,
};

/// The reason and the message of a condition. Its status follows from its type and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionText {
    /// The reason.
    pub reason: Reason,
    /// What happened, to which object, and what to do.
    pub message: String,
}

/// Builds a [`ConditionText`].
pub fn said(reason: Reason, message: impl Into<String>) -> ConditionText {
    ConditionText { reason, message: message.into() }
}

/// The status of a condition for a reason. It is Unknown for a reason that the table does not have for this condition.
#[must_use]
pub fn state(type_: ConditionType, reason: Reason) -> State {
    let state = type_.state(reason);
    debug_assert!(state.is_some(), "{type_} has no reason {reason}");
    state.unwrap_or(State::Unknown)
}

/// Builds a condition. It keeps the transition time of the `previous` status while the condition's status is the same.
#[must_use]
pub fn condition(
    type_: ConditionType,
    said: &ConditionText,
    generation: Option<i64>,
    previous: &IdleConnectionPolicyStatus,
    now: Timestamp,
) -> Condition {
    let status = state(type_, said.reason).to_string();
    let since = find(previous, type_).filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
    Condition {
        type_: type_.to_string(),
        status,
        reason: said.reason.to_string(),
        message: shortened(&said.message, MESSAGE_LENGTH),
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
    }
}

/// Finds a condition by its type.
#[must_use]
pub fn find(status: &IdleConnectionPolicyStatus, type_: ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == <&str>::from(type_))
}

/// The status of a condition in a status, whichever version gave the reason for it.
#[must_use]
pub fn status_of(status: &IdleConnectionPolicyStatus, type_: ConditionType) -> Option<State> {
    find(status, type_)?.status.parse().ok()
}

/// Whether a condition gets another status or another reason than it had.
#[must_use]
pub fn has_flipped(old: Option<&Condition>, status: &str, reason: &str) -> bool {
    old.is_none_or(|old| old.status != status || old.reason != reason)
}

/// The reason of a condition in a status. `None` also where another version wrote a reason that this version does not
/// know, or that has another status in this version.
#[must_use]
pub fn reason(status: &IdleConnectionPolicyStatus, type_: ConditionType) -> Option<Reason> {
    let condition = find(status, type_)?;
    let reason = condition.reason.parse().ok()?;
    type_.state(reason).filter(|state| condition.status == <&str>::from(state)).map(|_| reason)
}

/// An Event to publish once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The Event's reason, from which its type follows.
    pub reason: EventReason,
    /// The Event's note.
    pub note: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", if self.reason.is_warning() { "Warning" } else { "Normal" }, self.reason, self.note)
    }
}

/// Truncates to whole seconds, as the API server stores times, so that a status that is read back equals what was
/// written.
#[must_use]
pub fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// A number of nodes or names, as the status stores it.
#[must_use]
pub fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Shortens a text to `most` characters, with an ellipsis.
#[must_use]
pub fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Shortens a text to `most` bytes, as the API server counts them, with an ellipsis.
#[must_use]
pub fn shortened_to_bytes(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mark = '…';
    let mut end = most.saturating_sub(mark.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().chain([mark]).collect()
}
