//! The registration of a kind of target: facts that the operator needs before it connects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Credentials, Reach, Target, TargetAddress};
use crate::{
    api::{LimitValues, adaptive::Source, policy::Target as Spec},
    decide::{Fault, TargetCapabilities},
};

/// One kind of target.
pub struct Kind {
    /// The capabilities of a target with this spec.
    pub traits: fn(&Spec) -> TargetCapabilities,
    /// Identities of a target, from its spec, namespace and places. Equal identities mean the same target.
    pub identities: fn(&Spec, &str, &[TargetAddress]) -> BTreeSet<String>,
    /// Connects to a target.
    pub connect: fn(Connection<'_>) -> Result<Arc<dyn Target>, Fault>,
    /// Default source of the task count.
    pub source: Source,
    /// Whether each unit is a node, so that it has a metrics page even if it cannot be read.
    pub units_are_nodes: bool,
    /// Whether the target is one unit that reports the same identity at every address.
    pub states_identity: bool,
}

/// The input for connecting to a target.
pub struct Connection<'a> {
    /// The target's spec.
    pub spec: &'a Spec,
    /// Limits of each provider in a file.
    pub providers: &'a BTreeMap<String, LimitValues>,
    /// Places where the target was found.
    pub places: Vec<TargetAddress>,
    /// Content of the referenced Secrets and other objects.
    pub credentials: Credentials,
    /// Access to the target.
    pub reach: Reach,
}
