//! Comparison of the CRD that the API server serves with the CRD of this version.

use std::{fmt, sync::Arc, time::Duration};

use kube::{Client, Resource as _};
use serde_json::Value as Json;
use tokio::sync::watch;

use super::{Context, in_time, logging};
use crate::api::{
    IdleConnectionPolicy,
    schema::{self, Difference},
    wording::listed,
};

/// Interval of the checks while the CRD is missing, too old or unknown.
const CRD_RETRY: Duration = Duration::from_secs(2);
/// Interval of the checks otherwise: an upgrade of the CRD under a running operator is detected within this time.
const CRD_RECHECK: Duration = Duration::from_secs(60);

/// CRD that the API server serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Served {
    /// The API server has not been asked yet.
    #[default]
    Unasked,
    /// The CRD is not installed.
    Missing,
    /// The API server does not publish its schemas. The operator assumes that the CRD has its own version.
    Untold,
    /// The CRD has the version of this operator.
    Same,
    /// The CRD lacks these fields, so the API server would drop their values.
    Older(Vec<String>),
    /// The CRD has these fields, which this version does not know.
    Newer(Vec<String>),
}

impl Served {
    /// Returns why the operator waits; `None` if it can work.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        matches!(self, Self::Unasked | Self::Missing | Self::Older(_)).then(|| self.to_string())
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unasked => "the operator has not read the CRD yet",
            Self::Missing => "the CRD for policies is not installed; apply the CRD of this version, which `idleconn-operator crd` prints",
            Self::Untold => "the API server does not publish its schemas; the operator assumes that the CRD has its own version",
            Self::Same => "the CRD has the version of this operator",
            Self::Older(missing) => {
                let (version, missing) = (env!("CARGO_PKG_VERSION"), listed(missing));
                return write!(
                    f,
                    "the CRD is older than this operator {version} and lacks {missing}; apply the CRD of this version, which `idleconn-operator crd` prints"
                );
            }
            Self::Newer(_) => "the CRD is newer than this operator; policies with fields that the operator does not know are rejected",
        })
    }
}

/// The checks of a process.
#[derive(Default)]
pub struct Check {
    served: watch::Sender<Arc<Served>>,
    /// One actor checks for all.
    turn: tokio::sync::Mutex<()>,
}

impl Context {
    /// Returns the result of the last check.
    #[must_use]
    pub fn served(&self) -> Arc<Served> {
        self.served.served.borrow().clone()
    }

    /// Waits until the operator can work with the CRD. A replica that cannot work should not become the leader: during an
    /// upgrade, the replicas of the older version still can work.
    pub async fn workable(&self) {
        // `self` owns the sender, so this does not fail.
        let _ = self.served.served.subscribe().wait_for(|served| served.obstacle().is_none()).await;
    }

    /// Checks the CRD repeatedly; never ends.
    pub(super) async fn watch_served(&self) {
        let _turn = self.served.turn.lock().await;
        loop {
            let before = self.served();
            let now = match (ask(&self.client).await, &*before) {
                (Served::Untold, known) if *known != Served::Unasked => known.clone(),
                (now, _) => now,
            };
            self.served.served.send_replace(Arc::new(now.clone()));
            if *before != now {
                match &now {
                    Served::Same => tracing::info!("{now}"),
                    Served::Newer(unknown) => tracing::warn!(fields = listed(unknown), "{now}"),
                    Served::Untold => tracing::warn!("{now}"),
                    Served::Unasked | Served::Missing | Served::Older(_) => tracing::warn!("{now}; waiting"),
                }
            }
            let settled = matches!(now, Served::Same | Served::Newer(_));
            tokio::time::sleep(if settled { CRD_RECHECK } else { CRD_RETRY }).await;
        }
    }
}

/// Reads the schemas of the API server.
pub async fn ask(client: &Client) -> Served {
    let (group, version) = (IdleConnectionPolicy::group(&()), IdleConnectionPolicy::version(&()));
    let Ok(request) = http::Request::get(format!("/openapi/v3/apis/{group}/{version}")).body(Vec::new()) else {
        return Served::Untold;
    };
    let document: Json = match in_time(client.request(request)).await {
        Ok(document) => document,
        // This response is plain text, so it has no reason.
        Err(error) if error.is_not_found() => return Served::Missing,
        Err(error) => {
            tracing::debug!(error = logging::chain(&error), "cannot read the schemas of the API server");
            return Served::Untold;
        }
    };
    let kind = IdleConnectionPolicy::kind(&());
    let schemas = document["components"]["schemas"].as_object();
    let Some(schema) = schemas.and_then(|all| all.iter().find(|(name, _)| name.rsplit('.').next() == Some(&*kind))) else {
        return Served::Missing;
    };
    match schema::difference(schema.1) {
        Difference { missing, .. } if !missing.is_empty() => Served::Older(missing),
        Difference { unknown, .. } if !unknown.is_empty() => Served::Newer(unknown),
        Difference { .. } => Served::Same,
    }
}
