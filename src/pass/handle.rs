//! A policy with the metadata that the API server guarantees.

use kube::{Resource as _, ResourceExt as _};

use super::Error;
use crate::{
    api::{IdleConnectionPolicy, IdleConnectionPolicySpec, StoredPolicy},
    decide::claims::Claimant,
};

/// Policy with the metadata that the API server guarantees.
pub struct PolicyHandle {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `namespace/name`, as in logs and metrics. It also names the provider of the policy's connections.
    pub path: String,
    /// Its UID.
    pub uid: String,
    /// The policy as it was read, and its status as it was written since.
    pub object: Box<IdleConnectionPolicy>,
    /// Message for the status if the policy has fields or values that this version does not know.
    pub refusal: Option<String>,
    /// Its place in the order of the policies.
    pub claimant: Claimant,
    /// Whether a part of the status cannot be read. It counts as lost, and is written again.
    pub status_lost: bool,
    /// Whether a policy in another namespace governs a target with the same identity.
    pub shared: bool,
}

impl PolicyHandle {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`Error::Unreadable`] and [`Error::Nameless`].
    pub fn new(stored: StoredPolicy) -> Result<Self, Error> {
        let refusal =
            |foreign| format!("{foreign}; upgrade the operator from {}, or remove it from the policy", env!("CARGO_PKG_VERSION"));
        let status_lost = stored.lost;
        let (object, foreign) = stored.read().map_err(|foreign| Error::Unreadable(refusal(foreign)))?;
        let (Some(namespace), Some(uid), Some(created)) = (object.namespace(), object.uid(), object.creation_timestamp()) else {
            return Err(Error::Nameless);
        };
        let name = object.name_any();
        let claimant = Claimant { created: created.0, namespace: namespace.clone(), name: name.clone() };
        let refusal = foreign.map(refusal);
        let path = format!("{namespace}/{name}");
        Ok(Self { namespace, name, path, uid, object, refusal, claimant, status_lost, shared: false })
    }

    /// Returns the spec.
    #[must_use]
    pub const fn spec(&self) -> &IdleConnectionPolicySpec {
        &self.object.spec
    }

    /// Reports whether the policy is being deleted.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.object.meta().deletion_timestamp.is_some()
    }
}
