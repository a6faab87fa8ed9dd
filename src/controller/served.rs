//! The CRD as the API server serves it, held against the one that this program is made for.

use std::{fmt, sync::Arc, time::Duration};

use kube::{Client, Resource as _};
use serde_json::Value as Json;

use super::{Context, in_time, logging};
use crate::api::{
    IdleConnectionPolicy,
    schema::{self, Difference},
    stored::some,
};

/// How soon to look again where there is none that can be worked with, or it was not told.
const SOON: Duration = Duration::from_secs(2);
/// How soon otherwise: an upgrade of the CRD under a running operator is seen after this.
const LATER: Duration = Duration::from_secs(60);

/// What the API server has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Served {
    /// It has not been asked yet.
    #[default]
    Unasked,
    /// There is no such CRD.
    Missing,
    /// It did not say. What it has is taken for what is needed, as it was before anybody asked.
    Untold,
    /// What this program is made for.
    Same,
    /// It lacks these fields, and would drop what is written there.
    Older(Vec<String>),
    /// It has these fields, which this program does not know.
    Newer(Vec<String>),
}

impl Served {
    /// Why nothing is done as long as it is so; `None` where something is.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        matches!(self, Self::Unasked | Self::Missing | Self::Older(_)).then(|| self.to_string())
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unasked => write!(f, "the operator has not read the CRD yet"),
            Self::Missing => {
                write!(
                    f,
                    "the CRD for policies is not installed; apply the CRD of this version, which `idleconn-operator crd` prints"
                )
            }
            Self::Untold => {
                write!(f, "the API server does not publish its schemas; the operator assumes that the CRD has its own version")
            }
            Self::Same => write!(f, "the CRD has the version of this operator"),
            Self::Older(missing) => write!(
                f,
                "the CRD is older than this operator {} and lacks {}; apply the CRD of this version, which `idleconn-operator crd` prints",
                env!("CARGO_PKG_VERSION"),
                some(missing)
            ),
            Self::Newer(_) => {
                write!(
                    f,
                    "the CRD is newer than this operator; policies with fields that the operator does not know are rejected"
                )
            }
        }
    }
}

impl Context {
    /// What the API server has, as it was last seen.
    #[must_use]
    pub fn served(&self) -> Arc<Served> {
        self.served.borrow().clone()
    }

    /// Waits until there is a CRD that can be worked with. Whoever cannot work should not be the one that acts: during an upgrade the
    /// replicas of the version before still can.
    pub async fn workable(&self) {
        // The sender is this one's own: it does not end.
        let _ = self.served.subscribe().wait_for(|served| served.obstacle().is_none()).await;
    }

    /// Looks again and again; never ends.
    pub(super) async fn watch_served(&self) {
        loop {
            let before = self.served();
            let now = match (ask(&self.client).await, &*before) {
                (Served::Untold, known) if *known != Served::Unasked => known.clone(),
                (now, _) => now,
            };
            self.served.send_replace(Arc::new(now.clone()));
            if *before != now {
                match &now {
                    Served::Same => tracing::info!("{now}"),
                    Served::Newer(unknown) => tracing::warn!(fields = some(unknown), "{now}"),
                    Served::Untold => tracing::warn!("{now}"),
                    Served::Unasked | Served::Missing | Served::Older(_) => tracing::warn!("{now}; waiting"),
                }
            }
            let settled = matches!(now, Served::Same | Served::Newer(_));
            tokio::time::sleep(if settled { LATER } else { SOON }).await;
        }
    }
}

/// Asks the API server.
pub async fn ask(client: &Client) -> Served {
    let (group, version) = (IdleConnectionPolicy::group(&()), IdleConnectionPolicy::version(&()));
    let Ok(request) = http::Request::get(format!("/openapi/v3/apis/{group}/{version}")).body(Vec::new()) else {
        return Served::Untold;
    };
    let document: Json = match in_time(client.request(request)).await {
        Ok(document) => document,
        // It comes as plain text: there is no reason in it.
        Err(super::Error::Kube(kube::Error::Api(status))) if status.code == 404 => return Served::Missing,
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
