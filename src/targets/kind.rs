//! The registration of a kind of target: what the operator asks of a kind before it has connected to one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Credentials, Place, Reach, Target};
use crate::{
    api::{Settings, adaptive::Source, policy::Target as Spec},
    decide::{Fault, Traits},
};

/// One kind of target.
pub struct Kind {
    /// What is true of a target with this spec.
    pub traits: fn(&Spec) -> Traits,
    /// What the API server, or the policy's own text, says of where it is, by namespace and places. Equal ones are the same target.
    pub identities: fn(&Spec, &str, &[Place]) -> BTreeSet<String>,
    /// Connects one.
    pub connect: fn(Connection<'_>) -> Result<Arc<dyn Target>, Fault>,
    /// Where its task count comes from if the policy does not say.
    pub source: Source,
    /// Whether each unit is a node, so that it has a metrics page even when it cannot be read.
    pub units_are_nodes: bool,
    /// Whether the target is one unit that reports the same identity at every address.
    pub states_identity: bool,
}

/// What a target is connected with.
pub struct Connection<'a> {
    /// Its spec.
    pub spec: &'a Spec,
    /// What a file says of providers.
    pub providers: &'a BTreeMap<String, Settings>,
    /// Where it was found.
    pub places: Vec<Place>,
    /// What its references hold.
    pub credentials: Credentials,
    /// The way there.
    pub reach: Reach,
}
