//! What a server was measured to do with idle connections, and how that compares with what is expected, advertised or
//! programmed.
//!
//! Pure: connections are opened and timed in `crate::probe`.

use std::{fmt, time::Duration};

/// The smallest tolerance between a measurement and an expectation.
const MIN_TOLERANCE: Duration = Duration::from_secs(1);
/// The smallest error that a measurement is assumed to have.
const MIN_ERROR: Duration = Duration::from_millis(250);

/// How much one connection took. Connections that closed sort before those that did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept<T> {
    /// The server closed it after this much.
    Closed(T),
    /// It was still open after this much, when the probe ended.
    Open(T),
}

/// How long one idle connection stayed open.
pub type Idled = Kept<Duration>;

/// How many requests a connection took; of a closed one, how many were answered.
pub type Requests = Kept<u32>;

impl<T: Copy + PartialOrd> Kept<T> {
    /// Whether the server keeps the connection for at least this much: for requests, as its first answer says, that answer
    /// and `max` more. `None` where the probe ended before.
    #[must_use]
    pub fn keeps(self, least: T) -> Option<bool> {
        match self {
            Self::Closed(after) => Some(after >= least),
            Self::Open(after) => (after >= least).then_some(true),
        }
    }
}

impl Idled {
    /// The time, of either variant.
    #[must_use]
    pub const fn time(self) -> Duration {
        match self {
            Self::Closed(time) | Self::Open(time) => time,
        }
    }

    /// Whether this agrees with an idle timeout of `expected`, within [`tolerance`]. `None` where the probe ended too
    /// early to say.
    #[must_use]
    pub fn meets(self, expected: Duration) -> Option<bool> {
        let tolerance = tolerance(expected);
        match self {
            Self::Closed(after) => Some(after.abs_diff(expected) <= tolerance),
            Self::Open(after) => (after > expected + tolerance).then_some(false),
        }
    }
}

impl fmt::Display for Idled {
    /// `5.002s`, or `longer than 6m`; `never` where there is no limit to wait for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(after) => f.write_str(&time(*after)),
            Self::Open(Duration::MAX) => f.write_str("never"),
            Self::Open(after) => write!(f, "longer than {}", time(*after)),
        }
    }
}

/// A time to three digits after the point: `412µs`, `1.204ms`, `5.002s`, `6m0.5s`, `1h`.
#[must_use]
pub fn time(time: Duration) -> String {
    let trimmed = |value: f64, unit: &str| {
        let text = format!("{value:.3}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if time < Duration::from_millis(1) {
        return format!("{}µs", time.as_micros());
    }
    if time < Duration::from_secs(1) {
        return trimmed(time.as_secs_f64() * 1000.0, "ms");
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let seconds = Duration::from_millis(millis % 60_000);
    let part = |n: u64, unit: &str| if n == 0 { String::new() } else { format!("{n}{unit}") };
    let seconds = if seconds.is_zero() { String::new() } else { trimmed(seconds.as_secs_f64(), "s") };
    format!("{}{}{seconds}", part(hours, "h"), part(minutes, "m"))
}

/// The shortest, the median and the longest of several connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The connection that closed first.
    pub min: Idled,
    /// The connection in the middle; of an even number, the earlier of the two.
    pub median: Idled,
    /// The connection that closed last, or did not close.
    pub max: Idled,
}

impl Spread {
    /// `None` without a connection.
    #[must_use]
    pub fn of(connections: &[Idled]) -> Option<Self> {
        let mut sorted = connections.to_vec();
        sorted.sort_unstable();
        let median = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(Self { min: *sorted.first()?, median, max: *sorted.last()? })
    }

    /// Whether every connection agrees with an idle timeout of `expected`. `None` where the probe ended too early to
    /// say.
    #[must_use]
    pub fn meets(&self, expected: Duration) -> Option<bool> {
        let each = [self.min, self.median, self.max].map(|idled| idled.meets(expected));
        if each.contains(&Some(false)) { Some(false) } else { each.into_iter().collect::<Option<Vec<_>>>().map(|_| true) }
    }
}

/// How far a measurement of `actual` may be off: 1%, or 250 ms where that is more.
#[must_use]
pub fn error(actual: Duration) -> Duration {
    (actual / 100).max(MIN_ERROR)
}

/// How far a measurement may be from an expectation: 5%, or 1 s where that is more.
#[must_use]
pub fn tolerance(expected: Duration) -> Duration {
    (expected / 20).max(MIN_TOLERANCE)
}

/// A `Keep-Alive` header field. Unknown parameters are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advertised {
    /// `timeout=`: how long the server keeps an idle connection, whole seconds.
    pub timeout: Option<Duration>,
    /// `max=`: how many more requests the server answers on the connection.
    pub max: Option<u32>,
}

impl Advertised {
    /// Parses the field's value. `None` where it has neither parameter.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let mut read = Self::default();
        for part in value.split(',') {
            let Some((name, number)) = part.split_once('=') else { continue };
            let number = number.trim().trim_matches('"').parse::<u32>().ok();
            match name.trim().to_ascii_lowercase().as_str() {
                "timeout" => read.timeout = number.map(|seconds| Duration::from_secs(seconds.into())).or(read.timeout),
                "max" => read.max = number.or(read.max),
                _ => {}
            }
        }
        (read != Self::default()).then_some(read)
    }

    /// Whether the server keeps connections at least as long as it says, allowing for an error of 1% or 250 ms. `None`
    /// where it does not say, or the probe ended before that time.
    #[must_use]
    pub fn keeps_time(&self, measured: &Spread) -> Option<bool> {
        let timeout = self.timeout?;
        measured.min.keeps(timeout.saturating_sub(error(timeout)))
    }
}

impl fmt::Display for Advertised {
    /// `timeout=5, max=100`, as in the header field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timeout = self.timeout.map(|timeout| format!("timeout={}", timeout.as_secs()));
        let max = self.max.map(|max| format!("max={max}"));
        f.write_str(&timeout.into_iter().chain(max).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Requests {
    /// `100`, or `more than 100`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(answered) => write!(f, "{answered}"),
            Self::Open(answered) => write!(f, "more than {answered}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_measurement_may_be_off_by_five_percent_or_a_second() {
        for (measured, expected, agrees) in [
            (Idled::Closed(ms(30_000)), 30_000, Some(true)),
            (Idled::Closed(ms(31_500)), 30_000, Some(true)),
            (Idled::Closed(ms(31_501)), 30_000, Some(false)),
            (Idled::Closed(ms(28_500)), 30_000, Some(true)),
            (Idled::Closed(ms(28_499)), 30_000, Some(false)),
            (Idled::Closed(ms(3_000)), 2_000, Some(true)),
            (Idled::Closed(ms(3_001)), 2_000, Some(false)),
            (Idled::Open(ms(31_000)), 30_000, None),
            (Idled::Open(ms(31_501)), 30_000, Some(false)),
        ] {
            assert_eq!(measured.meets(ms(expected)), agrees, "{measured} for {expected}ms");
        }
    }

    #[test]
    fn one_connection_that_differs_is_a_difference() {
        let of = |all: &[u64]| Spread::of(&all.iter().map(|n| Idled::Closed(ms(*n))).collect::<Vec<_>>()).expect("connections");
        assert_eq!(of(&[5_000, 5_100, 5_050]).meets(ms(5_000)), Some(true));
        assert_eq!(of(&[5_000, 9_000, 5_050]).meets(ms(5_000)), Some(false));
        let early = Spread::of(&[Idled::Closed(ms(5_000)), Idled::Open(ms(5_500))]).expect("connections");
        assert_eq!(early.meets(ms(5_000)), None);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn the_spread_puts_connections_that_stayed_open_last() {
        let spread =
            Spread::of(&[Idled::Open(ms(6_000)), Idled::Closed(ms(9_000)), Idled::Closed(ms(1_000))]).expect("connections");
        assert_eq!((spread.min, spread.median), (Idled::Closed(ms(1_000)), Idled::Closed(ms(9_000))));
        assert_eq!(spread.max.to_string(), "longer than 6s");
        let two = Spread::of(&[Idled::Closed(ms(2)), Idled::Closed(ms(1))]).expect("connections");
        assert_eq!(two.median, Idled::Closed(ms(1)));
    }

    #[test]
    fn what_a_server_advertises_is_read_as_servers_write_it() {
        let of = |timeout: Option<u64>, max| Some(Advertised { timeout: timeout.map(Duration::from_secs), max });
        for (text, read) in [
            ("timeout=5", of(Some(5), None)),
            ("timeout=5, max=1000", of(Some(5), Some(1000))),
            ("max=1000,Timeout = 5", of(Some(5), Some(1000))),
            ("timeout=\"65\"", of(Some(65), None)),
            ("timeout=never, max=7", of(None, Some(7))),
            ("timeout=99999999999", None),
            ("timeout", None),
            ("", None),
        ] {
            assert_eq!(Advertised::parse(text), read, "{text}");
        }
        assert_eq!(of(Some(5), Some(7)).expect("both").to_string(), "timeout=5, max=7");
    }

    #[test]
    fn closing_later_than_advertised_keeps_the_word_and_closing_earlier_breaks_it() {
        let advertised = Advertised { timeout: Some(Duration::from_secs(5)), max: None };
        let of = |idled| advertised.keeps_time(&Spread::of(&[idled]).expect("a connection"));
        assert_eq!(of(Idled::Closed(ms(3_000))), Some(false));
        assert_eq!(of(Idled::Closed(ms(4_749))), Some(false));
        assert_eq!(of(Idled::Closed(ms(4_750))), Some(true));
        assert_eq!(of(Idled::Closed(ms(60_000))), Some(true));
        assert_eq!(of(Idled::Open(ms(3_000))), None);
        assert_eq!(of(Idled::Open(ms(6_000))), Some(true));
        assert_eq!(
            Advertised { timeout: None, max: Some(3) }.keeps_time(&Spread::of(&[Idled::Closed(ms(1))]).expect("one")),
            None
        );
    }

    #[test]
    fn requests_are_held_against_what_was_advertised() {
        assert_eq!(Requests::Closed(100).keeps(100), Some(true));
        assert_eq!(Requests::Closed(99).keeps(100), Some(false));
        assert_eq!(Requests::Open(99).keeps(100), None);
        assert_eq!(Requests::Open(101).keeps(100), Some(true));
    }

    #[test]
    fn times_have_three_digits_at_most() {
        for (time_, text) in [
            (Duration::from_micros(412), "412µs"),
            (Duration::from_micros(1_204), "1.204ms"),
            (ms(30), "30ms"),
            (ms(5_002), "5.002s"),
            (ms(60_000), "1m"),
            (ms(3_600_000), "1h"),
            (ms(90_500), "1m30.5s"),
            (ms(3_603_004), "1h3.004s"),
        ] {
            assert_eq!(time(time_), text);
        }
    }
}
