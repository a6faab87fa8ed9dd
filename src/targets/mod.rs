//! The supported kinds of server: one folder for each kind, all behind one trait.
//!
//! A target finds its units, reads them, writes them and reads them back. `decide` determines what is written. A new
//! kind is a folder with a [`Kind`] and a line in [`kind()`]; a new file format is a file in `api/formats`.
//! docs/extending.md shows both.

pub mod aistore;
pub mod caddy;
pub mod configmap;
pub mod endpoint;
pub mod go_duration;
pub mod kind;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use self::{
    endpoint::{AllowList, PodFacts, TargetAddress},
    kind::{Connection, Kind},
};
use crate::{
    api::{
        LimitValues,
        policy::{Target as Spec, TargetType},
    },
    decide::{Cause, Fault, TargetCapabilities},
    pass::world::Target,
    pool::{self, Provider},
};

/// Content of the Secrets and other objects that a policy references. It has no `Debug`, so it is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Bearer token.
    pub token: Option<String>,
    /// CA certificates in PEM.
    pub ca: Option<Vec<u8>>,
}

/// Access to a target.
#[derive(Clone)]
pub struct Reach {
    /// Client of the API server.
    pub client: kube::Client,
    /// The policy's namespace: nothing outside it is touched.
    pub namespace: String,
    /// Sends all other requests.
    pub provider: Provider,
    /// Whether a new generation waits to be applied. Nodes that did not answer the last request are skipped then.
    pub hurry: bool,
}

/// The registration of a kind. A kind without one does not compile.
#[must_use]
pub const fn kind(type_: TargetType) -> &'static Kind {
    match type_ {
        TargetType::AIStore => &aistore::KIND,
        TargetType::Caddy => &caddy::KIND,
        TargetType::ConfigMap => &configmap::KIND,
    }
}

/// The capabilities of a target.
#[must_use]
pub fn traits(spec: &Spec) -> TargetCapabilities {
    (kind(spec.type_).traits)(spec)
}

/// Identities of a spec's target, from the API server or from the policy's text. Equal identities mean the same target.
#[must_use]
pub fn identities(spec: &Spec, namespace: &str, places: &[TargetAddress]) -> BTreeSet<String> {
    (kind(spec.type_).identities)(spec, namespace, places)
}

/// Connects to a spec's target. `places` are the addresses where it was found; `providers` are the limits of each
/// provider in a file.
///
/// # Errors
/// Returns an error if the spec lacks the part for its type, which the API server rejects.
pub fn connect(
    spec: &Spec,
    providers: &BTreeMap<String, LimitValues>,
    places: Vec<TargetAddress>,
    credentials: Credentials,
    reach: Reach,
) -> Result<Arc<dyn Target>, Fault> {
    (kind(spec.type_).connect)(Connection { spec, providers, places, credentials, reach })
}

impl From<pool::Error> for Fault {
    fn from(error: pool::Error) -> Self {
        let cause = match error {
            pool::Error::Certificate(_) | pool::Error::Ca | pool::Error::SystemCa(_) => Cause::Certificate,
            pool::Error::Address(_) => Cause::NotPermitted,
            pool::Error::Connect(_)
            | pool::Error::TimedOut(..)
            | pool::Error::NoSocket(..)
            | pool::Error::Broken(_)
            | pool::Error::TooLarge(..)
            | pool::Error::NoMemory(..)
            | pool::Error::NotLeading(_) => Cause::Unreachable,
        };
        Self::new(cause, error.to_string())
    }
}
