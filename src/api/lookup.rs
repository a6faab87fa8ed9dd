//! What each kind of target says of where it is and how it is reached, in terms that all kinds share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::policy::{KeyRef, Scheme, ServiceRef};

/// Where a target's nodes are looked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup<'a> {
    /// At these URLs, which `--allow-endpoints` must list.
    Endpoints(Vec<&'a str>),
    /// Behind a Service as a whole: any endpoint speaks for all of them.
    Behind(&'a ServiceRef),
    /// Behind a Service, each endpoint a node.
    EachBehind(&'a ServiceRef),
    /// At this port of the selected pods.
    Pods {
        /// Selects them.
        selector: &'a LabelSelector,
        /// What they speak there.
        scheme: Scheme,
        /// The port.
        port: u16,
    },
    /// In the selected pods of one workload, which mount a file. They are not connected to.
    Mounting(&'a LabelSelector),
}

/// The keys that hold what a target is reached with.
#[derive(Clone, Copy, Debug, Default)]
pub struct References<'a> {
    /// A Secret's key with a bearer token.
    pub token: Option<&'a KeyRef>,
    /// A ConfigMap's key with certificates.
    pub ca_config_map: Option<&'a KeyRef>,
    /// A Secret's key with certificates.
    pub ca_secret: Option<&'a KeyRef>,
}

/// The spec of one kind of target: a member of `spec.target`.
pub trait Member {
    /// Where its nodes are looked for; `None` where it does not say, which the API server refuses.
    fn lookup(&self) -> Option<Lookup<'_>>;

    /// What it is reached with, beyond the operator's own rights.
    fn references(&self) -> References<'_> {
        References::default()
    }

    /// What pods speak that it has ever selected, also where it now selects none.
    fn pod_scheme(&self) -> Scheme {
        Scheme::default()
    }

    /// Where on a node its metrics page is, if it says so; otherwise it is `/metrics`.
    fn metrics_path(&self) -> Option<&str> {
        None
    }

    /// Whether the target itself names the addresses of its nodes. Each is then checked every time that it is used.
    fn names_its_nodes(&self) -> bool {
        false
    }
}
