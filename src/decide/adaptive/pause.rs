//! Pauses of adaptive control: which annotations pause it, and until when.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;

use crate::{
    api::{PAUSED, PAUSED_RELAX, PAUSED_TIGHTEN, PAUSES},
    decide::report::condition::whole_seconds,
};

/// What pauses adaptive control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// What pauses both directions.
    pub all: Option<By>,
    /// What pauses tightening only.
    pub tighten: Option<By>,
    /// What pauses relaxing only.
    pub relax: Option<By>,
}

/// What pauses adaptive control or one of its directions.
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
    pub const NONE: Self = Self { all: None, tighten: None, relax: None };

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
        Self { all, tighten: paused(PAUSED_TIGHTEN), relax: paused(PAUSED_RELAX) }
    }

    /// Whether tightening is paused.
    #[must_use]
    pub const fn stops_tightening(&self) -> bool {
        self.all.is_some() || self.tighten.is_some()
    }

    /// Whether relaxing is paused.
    #[must_use]
    pub const fn stops_relaxing(&self) -> bool {
        self.all.is_some() || self.relax.is_some()
    }

    /// A word or two for a table; empty where nothing is paused.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match (&self.all, &self.tighten, &self.relax) {
            (Some(By::Suspend), ..) => "suspended",
            (Some(_), ..) | (None, Some(_), Some(_)) => "paused",
            (None, Some(_), None) => "tightening paused",
            (None, None, Some(_)) => "relaxing paused",
            (None, None, None) => "",
        }
    }

    /// When the first pause of the annotations ends; `None` if none has an end.
    #[must_use]
    pub fn next_end(annotations: &BTreeMap<String, String>, now: Timestamp) -> Option<Timestamp> {
        let ends = PAUSES.iter().filter_map(|name| annotations.get(*name)?.parse::<Timestamp>().ok());
        ends.filter(|until| now < *until).min()
    }
}

/// What is paused, by what, and until when. A pause of everything says all.
impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clause = |by: &By, what: &str| match by {
            By::Suspend => format!("spec.suspend is true, which pauses {what}"),
            By::Annotation(name, None) => format!("Annotation {name} pauses {what}"),
            By::Annotation(name, Some(until)) => {
                format!("Annotation {name} pauses {what} until {}", whole_seconds(*until))
            }
            By::Unreadable(name) => format!("Annotation {name} is neither true nor a time, so {what} is paused"),
        };
        let clauses: Vec<_> = match &self.all {
            Some(all) => vec![clause(all, "adaptive control")],
            None => [(&self.tighten, "tightening"), (&self.relax, "relaxing")]
                .into_iter()
                .filter_map(|(by, what)| by.as_ref().map(|by| clause(by, what)))
                .collect(),
        };
        if clauses.is_empty() { write!(f, "Nothing is paused") } else { write!(f, "{}", clauses.join("; ")) }
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
        for (suspend, annotations, (tighten, relax), label, words) in [
            (false, &[][..], (false, false), "", "Nothing is paused"),
            (true, &[], (true, true), "suspended", "spec.suspend is true, which pauses adaptive control"),
            (false, &[(PAUSED, "true")], (true, true), "paused", "Annotation idleconn.io/paused pauses adaptive control"),
            (false, &[(PAUSED, "false")], (false, false), "", "Nothing is paused"),
            (false, &[(PAUSED, "1969-12-31T23:00:00Z")], (false, false), "", "Nothing is paused"),
            (
                false,
                &[(PAUSED_TIGHTEN, "1970-01-01T01:00:00.5Z")],
                (true, false),
                "tightening paused",
                "Annotation idleconn.io/paused-tighten pauses tightening until 1970-01-01T01:00:00Z",
            ),
            (
                false,
                &[(PAUSED_RELAX, "true")],
                (false, true),
                "relaxing paused",
                "Annotation idleconn.io/paused-relax pauses relaxing",
            ),
            (
                false,
                &[(PAUSED_TIGHTEN, "1970-01-01T01:00:00Z"), (PAUSED_RELAX, "true")],
                (true, true),
                "paused",
                "Annotation idleconn.io/paused-tighten pauses tightening until 1970-01-01T01:00:00Z; \
                 Annotation idleconn.io/paused-relax pauses relaxing",
            ),
            (
                false,
                &[(PAUSED, "soon")],
                (true, true),
                "paused",
                "Annotation idleconn.io/paused is neither true nor a time, so adaptive control is paused",
            ),
        ] {
            let pause = pause(suspend, annotations);
            let stops = (pause.stops_tightening(), pause.stops_relaxing());
            assert_eq!((stops, pause.label(), &*pause.to_string()), ((tighten, relax), label, words), "{annotations:?}");
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
