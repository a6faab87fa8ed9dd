//! Location and credentials of a target, in terms that all kinds share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::refs::{KeyRef, Scheme, ServiceRef};

/// Place where the operator looks for the nodes of a target.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup<'a> {
    /// The nodes are at these URLs, which `--allow-endpoints` must list.
    Endpoints(Vec<&'a str>),
    /// The target is behind a Service: any endpoint can answer for all nodes.
    Behind(&'a ServiceRef),
    /// Each endpoint of a Service is a node.
    EachBehind(&'a ServiceRef),
    /// The nodes are at this port of the selected pods.
    Pods {
        /// Selector of the pods.
        selector: &'a LabelSelector,
        /// Scheme of the port.
        scheme: Scheme,
        /// Port number.
        port: u16,
    },
    /// The nodes are the selected pods of one workload, which mount a file. The operator does not connect to them.
    Mounting(&'a LabelSelector),
}

/// Keys, in a Secret or ConfigMap, with the credentials of a target.
#[derive(Clone, Copy, Debug, Default)]
pub struct References<'a> {
    /// Secret key with a bearer token.
    pub token: Option<&'a KeyRef>,
    /// ConfigMap key with CA certificates.
    pub ca_config_map: Option<&'a KeyRef>,
    /// Secret key with CA certificates.
    pub ca_secret: Option<&'a KeyRef>,
}

/// Spec of one kind of target: a member of `spec.target`.
pub trait Member {
    /// Returns where the operator looks for nodes; `None` if the spec does not say, which the API server refuses.
    fn lookup(&self) -> Option<Lookup<'_>>;

    /// Returns the credentials of the target, in addition to the operator's own rights.
    fn references(&self) -> References<'_> {
        References::default()
    }

    /// Returns the scheme of pods that the target has ever selected, even if it selects none now.
    fn pod_scheme(&self) -> Scheme {
        Scheme::default()
    }

    /// Returns the path of the metrics page on a node; `None` means `/metrics`.
    fn metrics_path(&self) -> Option<&str> {
        None
    }

    /// Reports whether the target itself supplies the addresses of its nodes. Each address is then checked at every use.
    fn names_its_nodes(&self) -> bool {
        false
    }
}
