//! What can be governed: one folder a kind of server, all behind one trait.
//!
//! A target finds its units, reads them, writes them and reads them back. What is written is decided elsewhere.
//! A new kind is a folder with a [`Kind`] and a line in [`kind()`]; a new format of a file is a file in `api/formats`. docs/extending.md shows both.

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

use futures::future::BoxFuture;

pub use self::{
    endpoint::{AllowList, Place, PodFacts},
    kind::{Connection, Kind},
};
use crate::{
    api::{
        Settings,
        policy::{Target as Spec, TargetType},
    },
    decide::{Cause, Change, Fault, Traits, Unit, UnitState},
    pool::{self, Provider},
};

/// What a policy's references hold. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// A bearer token.
    pub token: Option<String>,
    /// Certificates in PEM.
    pub ca: Option<Vec<u8>>,
}

/// One kind of server, connected.
pub trait Target: Send + Sync {
    /// Finds the units. None at all is [`Cause::NotFound`].
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>>;

    /// Reads what a unit and its nodes hold.
    fn read<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<UnitState, Fault>>;

    /// When the unit's process started, by its own word: anything that differs after a restart. `None` where it does not say, or
    /// where a restart loses nothing that was stored.
    fn started<'a>(&'a self, _unit: &'a Unit) -> BoxFuture<'a, Option<String>> {
        Box::pin(std::future::ready(None))
    }

    /// Takes a node out of service, or back into it, so that its restart disturbs nobody.
    fn drain<'a>(&'a self, _unit: &'a Unit, _node: &'a str, _out: bool) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Writes changes, all at once, against the state they were decided from.
    ///
    /// A time-out is a fault like any other: whether it was stored is found out by reading.
    fn write<'a>(&'a self, unit: &'a Unit, state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>>;
}

/// What a target is reached with.
#[derive(Clone)]
pub struct Reach {
    /// The API server.
    pub client: kube::Client,
    /// The policy's namespace: nothing outside it is touched.
    pub namespace: String,
    /// Every other request.
    pub provider: Provider,
    /// Whether a new generation waits to be applied. Nodes that did not answer the last request are then not waited for.
    pub hurry: bool,
}

/// The registration of each kind: one that has none does not compile.
#[must_use]
pub const fn kind(type_: TargetType) -> &'static Kind {
    match type_ {
        TargetType::AIStore => &aistore::KIND,
        TargetType::Caddy => &caddy::KIND,
        TargetType::ConfigMap => &configmap::KIND,
    }
}

/// What is true of a target.
#[must_use]
pub fn traits(spec: &Spec) -> Traits {
    (kind(spec.type_).traits)(spec)
}

/// What the API server, or the policy's own text, says of where a spec's target is. Equal ones are the same target.
#[must_use]
pub fn identities(spec: &Spec, namespace: &str, places: &[Place]) -> BTreeSet<String> {
    (kind(spec.type_).identities)(spec, namespace, places)
}

/// Connects a spec's target; `places` are the addresses it was found at, and `providers` what a file says of them.
///
/// # Errors
/// Where the spec does not say what its type is about, which the API server refuses.
pub fn connect(
    spec: &Spec,
    providers: &BTreeMap<String, Settings>,
    places: Vec<Place>,
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
