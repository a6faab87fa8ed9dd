//! `pause` and `resume`: the annotations that pause adaptive control. Git and other clients may set them too.

use jiff::Timestamp;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value as Json, json};

use super::Error;
use crate::api::{GoDuration, PAUSED, PAUSED_RELAX, PAUSED_TIGHTEN, StoredPolicy};

/// Field manager of the annotations.
const MANAGER: &str = "kubectl-idleconn";

/// What is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Tightening and relaxing.
    Both,
    /// Tightening.
    Tighten,
    /// Relaxing.
    Relax,
}

impl Direction {
    const fn annotation(self) -> &'static str {
        match self {
            Self::Both => PAUSED,
            Self::Tighten => PAUSED_TIGHTEN,
            Self::Relax => PAUSED_RELAX,
        }
    }
}

/// Pauses for a time, or until the policy is resumed. Returns ` until TIME` if there is an end.
pub async fn pause(
    api: &Api<StoredPolicy>,
    name: &str,
    direction: Direction,
    time: Option<GoDuration>,
    now: Timestamp,
) -> Result<String, Error> {
    let end = time.and_then(|time| time.get()).map(|time| now.checked_add(time)).transpose();
    let end =
        end.map_err(|_| Error::Usage("--for is too long".to_owned()))?.map(|end| end.round(jiff::Unit::Second).unwrap_or(end));
    let value = end.map_or_else(|| "true".to_owned(), |end| end.to_string());
    annotate(api, name, Map::from_iter([(direction.annotation().to_owned(), Json::String(value))])).await?;
    Ok(end.map_or_else(String::new, |end| format!(" until {end}")))
}

/// Removes all pauses.
pub async fn resume(api: &Api<StoredPolicy>, name: &str) -> Result<(), Error> {
    let all = [Direction::Both, Direction::Tighten, Direction::Relax];
    annotate(api, name, all.into_iter().map(|direction| (direction.annotation().to_owned(), Json::Null)).collect()).await
}

async fn annotate(api: &Api<StoredPolicy>, name: &str, annotations: Map<String, Json>) -> Result<(), Error> {
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Merge(json!({"metadata": {"annotations": annotations}}))).await?;
    Ok(())
}
