//! Durations in the notation of Go servers: with fractions, `us` and `ns`.

use std::time::Duration;

/// Parses a duration in Go's notation (`time.Duration.String`), also with days, which Caddy accepts.
///
/// Returns `None` for invalid text, and for a negative duration, which no limit can have.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.trim_start_matches('+');
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match rest.get(..end)? {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            "d" => 8.64e13,
            _ => return None,
        };
        nanos += number * scale;
        rest = rest.get(end..)?;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(nanos / 1e9).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_writes_is_read() {
        for (text, ms) in [
            ("6s", 6_000.0),
            ("1h0m", 3_600_000.0),
            ("1m0s", 60_000.0),
            ("1.5s", 1_500.0),
            ("100ms", 100.0),
            ("1d", 86_400_000.0),
            ("0s", 0.0),
            ("0", 0.0),
            ("250us", 0.25),
        ] {
            assert_eq!(parse(text).map(|d| d.as_secs_f64() * 1e3), Some(ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_not() {
        for text in ["", "-5s", "abc", "20", "5x", "1..5s", "99999999999999999999h"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
