//! Public types: `IdleConnectionPolicy`, its limits, presets, rules and status.
//!
//! Pure: no kube client, no HTTP, no tokio, no clock. The doc comments in this folder are the texts of `kubectl explain`.

pub mod adaptive;
pub mod adaptive_state;
pub mod conditions;
pub mod config_map;
pub mod crd;
pub mod duration;
pub mod flush;
pub mod formats;
pub mod guarded;
pub mod limits;
pub mod lookup;
pub mod overrides;
pub mod policy;
pub mod preset;
pub mod refs;
pub mod restart;
mod rules;
pub mod schema;
pub mod status;
pub mod stored;
pub mod update;
pub mod verify;
pub mod wording;

pub use duration::GoDuration;
pub use formats::Format;
pub use limits::{Limit, LimitValues, Limits, Value};
pub use policy::{IdleConnectionPolicy, IdleConnectionPolicySpec};
pub use preset::Preset;
pub use status::IdleConnectionPolicyStatus;
pub use stored::StoredPolicy;

/// Label of objects that the operator keeps for a policy; its value is the policy's name.
pub const POLICY_LABEL: &str = "idleconn.io/policy";
/// Finalizer that keeps a policy until its nodes are restored.
pub const FINALIZER: &str = "idleconn.io/restore";
/// Annotation that pauses tightening and relaxing. Its value is `"true"` or an RFC 3339 time at which the pause ends.
pub const PAUSED: &str = "idleconn.io/paused";
/// Annotation that pauses tightening.
pub const PAUSED_TIGHTEN: &str = "idleconn.io/paused-tighten";
/// Annotation that pauses relaxing.
pub const PAUSED_RELAX: &str = "idleconn.io/paused-relax";
/// All annotations that pause adaptive control.
pub const PAUSES: [&str; 3] = [PAUSED, PAUSED_TIGHTEN, PAUSED_RELAX];
/// Prefix of the annotations of a ConfigMap that record, for each key, the settings written into it.
pub const SETTINGS_PREFIX: &str = "settings.idleconn.io/";
/// Annotation of a ConfigMap that the operator created.
pub const CREATED: &str = "idleconn.io/created";
/// Annotation of a pod template: hash of the settings for which its pods were started.
pub const CONFIG_HASH: &str = "idleconn.io/config-hash";
/// Field manager of every write to the API server, and the reporting controller of every Event.
pub const MANAGER: &str = "idleconn-operator";
