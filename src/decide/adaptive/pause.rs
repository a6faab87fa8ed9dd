//! Pauses of adaptive control: which annotations pause it, and until when.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;

use crate::api::{PAUSED, PAUSED_RELAX, PAUSED_TIGHTEN};
use crate::decide::condition::whole_seconds;

/// The directions that are paused, and by what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Tightening is paused.
    pub tighten: bool,
    /// Relaxing is paused.
    pub relax: bool,
    /// What pauses them; `None` where nothing is paused.
    pub by: Option<By>,
}

/// What pauses adaptive control. Where several things do, this is the one that is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// `spec.suspend`.
    Suspend,
    /// An annotation, until a time if it gives one.
    Annotation(&'static str, Option<Timestamp>),
    /// An annotation whose value is neither true, nor false, nor a time.
    Unreadable(&'static str),
}

impl Pause {
    /// Nothing is paused.
    pub const NONE: Self = Self { tighten: false, relax: false, by: None };

    /// The pause that `spec.suspend` and the annotations of a policy make at `now`.
    #[must_use]
    pub fn of(suspend: bool, annotations: &BTreeMap<String, String>, now: Timestamp) -> Self {
        let paused = |name: &'static str| {
            let value = annotations.get(name)?;
            match (value.as_str(), value.parse::<Timestamp>()) {
                ("true", _) => Some(By::Annotation(name, None)),
                ("false", _) => None,
                (_, Ok(until)) => (now < until).then_some(By::Annotation(name, Some(until))),
                (_, Err(_)) => Some(By::Unreadable(name)),
            }
        };
        let all = if suspend { Some(By::Suspend) } else { paused(PAUSED) };
        let (tighten, relax) = (paused(PAUSED_TIGHTEN), paused(PAUSED_RELAX));
        Self {
            tighten: all.is_some() || tighten.is_some(),
            relax: all.is_some() || relax.is_some(),
            by: all.or(tighten).or(relax),
        }
    }

    /// When the first pause of the annotations ends; `None` if none has an end.
    #[must_use]
    pub fn next_end(annotations: &BTreeMap<String, String>, now: Timestamp) -> Option<Timestamp> {
        let names = [PAUSED, PAUSED_TIGHTEN, PAUSED_RELAX];
        let ends = names.iter().filter_map(|name| annotations.get(*name)?.parse::<Timestamp>().ok());
        ends.filter(|until| now < *until).min()
    }
}

/// What is paused, by what, and until when.
impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.tighten, self.relax) {
            (true, false) => "tightening",
            (false, true) => "relaxing",
            _ => "adaptive control",
        };
        match &self.by {
            None => write!(f, "Nothing is paused"),
            Some(By::Suspend) => write!(f, "spec.suspend is true, which pauses {what}"),
            Some(By::Annotation(name, None)) => write!(f, "Annotation {name} pauses {what}"),
            Some(By::Annotation(name, Some(until))) => {
                write!(f, "Annotation {name} pauses {what} until {}", whole_seconds(*until))
            }
            Some(By::Unreadable(name)) => write!(f, "Annotation {name} is neither true nor a time, so {what} is paused"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(suspend: bool, annotations: &[(&str, &str)]) -> Pause {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Pause::of(suspend, &annotations, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_pause_says_what_is_paused_by_what_and_until_when() {
        for (suspend, annotations, tighten, relax, words) in [
            (false, &[][..], false, false, "Nothing is paused"),
            (true, &[], true, true, "spec.suspend is true, which pauses adaptive control"),
            (false, &[(PAUSED, "true")], true, true, "Annotation idleconn.io/paused pauses adaptive control"),
            (false, &[(PAUSED, "false")], false, false, "Nothing is paused"),
            (false, &[(PAUSED, "1969-12-31T23:00:00Z")], false, false, "Nothing is paused"),
            (
                false,
                &[(PAUSED_TIGHTEN, "1970-01-01T01:00:00.5Z")],
                true,
                false,
                "Annotation idleconn.io/paused-tighten pauses tightening until 1970-01-01T01:00:00Z",
            ),
            (false, &[(PAUSED_RELAX, "true")], false, true, "Annotation idleconn.io/paused-relax pauses relaxing"),
            (
                false,
                &[(PAUSED, "soon")],
                true,
                true,
                "Annotation idleconn.io/paused is neither true nor a time, so adaptive control is paused",
            ),
        ] {
            let pause = pause(suspend, annotations);
            assert_eq!((pause.tighten, pause.relax, &*pause.to_string()), (tighten, relax, words), "{annotations:?}");
        }
    }

    #[test]
    fn the_first_end_counts() {
        let annotations = [(PAUSED, "1970-01-01T02:00:00Z"), (PAUSED_RELAX, "1970-01-01T01:00:00Z"), (PAUSED_TIGHTEN, "true")];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let end = Pause::next_end(&annotations, Timestamp::UNIX_EPOCH);
        assert_eq!(end.map(Timestamp::as_second), Some(3600));
        assert_eq!(Pause::next_end(&annotations, Timestamp::from_second(7200).expect("a time")), None);
    }
}
