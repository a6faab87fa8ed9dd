//! Durations as users write them: GEP-2257 strings, which keep their text and compare as times.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Duration such as `30s`, `1m30s` or `500ms`: one to four numbers, each with the unit h, m, s or ms.
///
/// The grammar is the one of GEP-2257 (Kubernetes Gateway API). The text stays as written, so that the status and `kubectl diff`
/// show the user's own spelling. To compare two values, use [`GoDuration::get`].
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(transparent)]
pub struct GoDuration(
    #[schemars(
        length(max = 32),
        regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"),
        extend("format" = "duration")
    )]
    String,
);

/// Error of a text that is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The text does not follow the grammar.
    #[error("{0:?} is not a duration: write numbers with h, m, s or ms, such as 1m30s")]
    Grammar(String),
}

impl GoDuration {
    /// Returns the time; `None` if the text does not follow the grammar, which the API server refuses.
    #[must_use]
    pub fn get(&self) -> Option<Duration> {
        parse(&self.0)
    }

    /// A number of seconds, as the default of a field.
    pub(super) fn seconds<const SECONDS: u64>() -> Self {
        Duration::from_secs(SECONDS).into()
    }
}

impl FromStr for GoDuration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map(|_| Self(text.to_owned())).ok_or_else(|| Error::Grammar(text.to_owned()))
    }
}

impl From<Duration> for GoDuration {
    /// Canonical spelling with the largest unit first: 90 s is `1m30s`. Times below a millisecond have Go's units `us` and `ns`,
    /// which a user cannot write and a node can store.
    fn from(duration: Duration) -> Self {
        let ns = duration.as_nanos();
        let ms = ns / 1_000_000;
        let parts = [
            (ms / 3_600_000, "h"),
            (ms / 60_000 % 60, "m"),
            (ms / 1_000 % 60, "s"),
            (ms % 1_000, "ms"),
            (ns / 1_000 % 1_000, "us"),
            (ns % 1_000, "ns"),
        ];
        let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| n.to_string() + unit).collect();
        Self(if text.is_empty() { "0s".into() } else { text })
    }
}

impl Default for GoDuration {
    fn default() -> Self {
        Self::seconds::<0>()
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let unit = match unit {
            "h" => Duration::from_secs(3_600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        parts += 1;
        if number.len() > 5 || parts > 4 {
            return None;
        }
        total += unit * number.parse::<u32>().ok()?;
        rest = after;
    }
    (parts > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_write_is_read_as_time() {
        for (text, ms) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("0s", 0), ("1h2m3s4ms", 3_723_004), ("90s", 90_000)]
        {
            assert_eq!(text.parse::<GoDuration>().ok().and_then(|d| d.get()), Some(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "30", "s", "-5s", "1.5s", "1d", "10 s", "1us", "123456s", "1s1s1s1s1s"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_canonical_spelling_names_the_largest_units() {
        for (ms, text) in [
            (0, "0s"),
            (90_000, "1m30s"),
            (600_000, "10m"),
            (3_600_000, "1h"),
            (1_500, "1s500ms"),
            (20_000, "20s"),
            (90_061_001, "25h1m1s1ms"),
        ] {
            assert_eq!(GoDuration::from(Duration::from_millis(ms)).to_string(), text);
        }
        assert_eq!(GoDuration::from(Duration::from_nanos(1_250_030)).to_string(), "1ms250us30ns");
    }

    proptest::proptest! {
        #[test]
        fn spelling_and_reading_agree(ms in 0u64..300_000_000_000) {
            let spelled = GoDuration::from(Duration::from_millis(ms));
            proptest::prop_assert_eq!(spelled.get(), Some(Duration::from_millis(ms)));
        }
    }
}
