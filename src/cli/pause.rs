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
    /// Returns what a pause of this direction did, as kubectl says it after the name of an object.
    pub const fn done(self) -> &'static str {
        match self {
            Self::Both => "paused",
            Self::Tighten => "tightening paused",
            Self::Relax => "relaxing paused",
        }
    }

    const fn annotation(self) -> &'static str {
        match self {
            Self::Both => PAUSED,
            Self::Tighten => PAUSED_TIGHTEN,
            Self::Relax => PAUSED_RELAX,
        }
    }
}

/// Annotations of a patch; null removes one.
pub type Annotations = Map<String, Json>;

/// Returns the end of a pause that begins now; `None` if it has no end.
pub fn end(time: Option<&GoDuration>, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    let end = time.and_then(GoDuration::get).map(|time| now.checked_add(time)).transpose();
    let end = end.map_err(|_| Error::Usage("--for is too long".to_owned()))?;
    Ok(end.map(|end| end.round(jiff::Unit::Second).unwrap_or(end)))
}

/// Returns the annotation of a pause until `end`, or until the policy is resumed.
pub fn annotations(direction: Direction, end: Option<Timestamp>) -> Annotations {
    let value = end.map_or_else(|| "true".to_owned(), |end| end.to_string());
    Map::from_iter([(direction.annotation().to_owned(), Json::String(value))])
}

/// Returns the annotations that remove all pauses.
pub fn no_annotations() -> Annotations {
    let all = [Direction::Both, Direction::Tighten, Direction::Relax];
    all.into_iter().map(|direction| (direction.annotation().to_owned(), Json::Null)).collect()
}

/// Changes annotations of a policy. Returns whether the policy is suspended.
pub async fn annotate(api: &Api<StoredPolicy>, name: &str, annotations: &Annotations) -> Result<bool, Error> {
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let policy = api.patch(name, &params, &Patch::Merge(json!({"metadata": {"annotations": annotations}}))).await?;
    Ok(policy.read().is_ok_and(|(policy, _)| policy.spec.suspend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_at_a_whole_second_or_at_a_resume() {
        let now = Timestamp::from_millisecond(400).expect("a time");
        let hour = "1h".parse().expect("a duration");
        let end = end(Some(&hour), now).expect("a time");
        assert_eq!(
            annotations(Direction::Relax, end),
            Map::from_iter([(PAUSED_RELAX.to_owned(), json!("1970-01-01T01:00:00Z"))])
        );
        assert_eq!(annotations(Direction::Both, None), Map::from_iter([(PAUSED.to_owned(), json!("true"))]));
        assert_eq!(no_annotations().len(), 3);
    }
}
