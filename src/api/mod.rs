//! The public types: `IdleConnectionPolicy`, its limits, presets, rules and status.
//!
//! Pure: no kube client, no HTTP, no tokio, no clock. What lives here is what `kubectl explain` shows.

pub mod adaptive;
pub mod conditions;
pub mod config_map;
pub mod crd;
pub mod duration;
pub mod flush;
pub mod formats;
pub mod limits;
pub mod lookup;
pub mod overrides;
pub mod policy;
pub mod preset;
pub mod restart;
mod rules;
pub mod schema;
pub mod status;
pub mod stored;
pub mod verify;

pub use duration::GoDuration;
pub use formats::Format;
pub use limits::{Knob, Limits, Settings, Value};
pub use policy::{IdleConnectionPolicy, IdleConnectionPolicySpec};
pub use preset::Preset;
pub use status::IdleConnectionPolicyStatus;
pub use stored::StoredPolicy;

/// Label on what the operator keeps for a policy: the policy's name.
pub const POLICY_LABEL: &str = "idleconn.io/policy";
/// Finalizer that holds a policy until the nodes have their old settings back.
pub const FINALIZER: &str = "idleconn.io/restore";
/// Annotation that stops tightening and relaxing: `"true"`, or an RFC 3339 time until when.
pub const PAUSED: &str = "idleconn.io/paused";
/// Annotation that stops tightening.
pub const PAUSED_TIGHTEN: &str = "idleconn.io/paused-tighten";
/// Annotation that stops relaxing.
pub const PAUSED_RELAX: &str = "idleconn.io/paused-relax";
/// All of these.
pub const PAUSES: [&str; 3] = [PAUSED, PAUSED_TIGHTEN, PAUSED_RELAX];
/// Prefix of the annotations, one for each key, in which a ConfigMap holds what was written into the key.
pub const SETTINGS_PREFIX: &str = "settings.idleconn.io/";
/// Annotation of a ConfigMap that did not exist before a policy came.
pub const CREATED: &str = "idleconn.io/created";
/// Annotation of a pod template: the hash of the settings that its pods have been started for.
pub const CONFIG_HASH: &str = "idleconn.io/config-hash";
/// Field manager of every write to the API server, and the reporting controller of every Event.
pub const MANAGER: &str = "idleconn-operator";
