//! Input of a sampler, and the gap that each failed request leaves.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http::{HeaderMap, header::LOCATION};

use super::page::Probe;
use crate::{decide::adaptive::signal::NoSample, pass::world::SampledNode, pool::Error};

/// Longest timeout for one node.
const LONGEST: Duration = Duration::from_secs(5);
/// Longest path of a redirect that is shown.
const MAX_HINT: usize = 128;

/// The source of the samples.
#[derive(Clone, Debug)]
pub enum Source {
    /// The page of each node.
    Nodes(Arc<Probe>),
    /// A Prometheus server, treated as the only node.
    Prometheus {
        /// The query.
        query: String,
        /// Threshold for the result.
        threshold: f64,
    },
}

/// Returns the address under which a node may be reached at this moment; `None` if it may not be reached. It is called
/// for nodes whose address only their cluster names.
pub type Permit = Arc<dyn Fn(SampledNode) -> BoxFuture<'static, Option<String>> + Send + Sync>;

/// Everything that a sampler needs to know.
#[derive(Clone)]
pub struct Watch {
    /// The nodes.
    pub nodes: Vec<SampledNode>,
    /// The source of the samples.
    pub source: Source,
    /// Time between two rounds.
    pub interval: Duration,
    /// CA certificates for the nodes, in PEM.
    pub ca: Option<Vec<u8>>,
    /// Bearer token, for Prometheus only.
    pub token: Option<String>,
    /// Permits addresses that a cluster names; without it, none is permitted.
    pub permit: Option<Permit>,
    /// Header fields, for Prometheus only.
    pub headers: Vec<(String, String)>,
    /// Identity of the source: if it changes, the earlier samples are discarded.
    pub key: String,
}

impl Watch {
    /// Timeout for one node.
    pub(super) fn timeout(&self) -> Duration {
        self.interval.min(LONGEST)
    }
}

/// Why there was no response.
pub(super) fn silence(error: &Error) -> NoSample {
    match error {
        Error::Connect(_) | Error::Address(_) => NoSample::Unreachable,
        Error::TimedOut(..) => NoSample::TimedOut,
        Error::Certificate(_) | Error::Ca | Error::SystemCa(_) => NoSample::Certificate,
        Error::NoSocket(..) | Error::NoMemory(..) => NoSample::Busy,
        Error::TooLarge(_, most) => NoSample::TooLarge(most / 1024 / 1024),
        Error::Broken(_) | Error::NotLeading(_) => NoSample::Broken,
    }
}

/// The gap for a status other than 200. `asked` is the URL of the request.
pub(super) fn refused(status: u16, headers: &HeaderMap, asked: &str) -> NoSample {
    match status {
        401 | 403 => NoSample::Unauthorized(status),
        301 | 302 | 303 | 307 | 308 => {
            NoSample::Redirect(status, headers.get(LOCATION).and_then(|to| hint(to.to_str().ok()?, asked)))
        }
        _ => NoSample::Status(status),
    }
}

/// The path of a redirect. It comes from another server, so only a plain path is shown.
fn hint(location: &str, asked: &str) -> Option<Arc<str>> {
    let from = url::Url::parse(asked).ok()?;
    let to = from.join(location).ok()?;
    let is_plain =
        |path: &str| path.len() <= MAX_HINT && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte));
    (to.origin() == from.origin() && is_plain(to.path())).then(|| to.path().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_shows_a_plain_path_of_the_same_server_and_nothing_else() {
        let shown = |location: &str| hint(location, "http://10.0.0.1:8080/metrics?x=y").map(|path| path.to_string());
        assert_eq!(shown("/metrics/?x=secret").as_deref(), Some("/metrics/"));
        assert_eq!(shown("metrics/").as_deref(), Some("/metrics/"));
        assert_eq!(shown("http://10.0.0.1:8080/a/metrics").as_deref(), Some("/a/metrics"));
        for other in ["https://sso.example/login", "//evil/x", "/a b", "/<script>", "mailto:x"] {
            assert_eq!(shown(other), None, "{other}");
        }
        assert_eq!(shown(&format!("/{}", "x".repeat(200))), None);
    }
}
