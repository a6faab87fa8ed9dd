//! What a metrics page says of one node.

use memchr::{memchr, memrchr};

use super::exposition::{Families, Found};
use crate::decide::signal::{Gap, Measure};

/// AIStore's alert bits (`cmn/cos/node_state.go`): 512 goroutines a CPU and more, and 1024 and more.
const YELLOW: u64 = 1 << 14;
/// See above.
const RED: u64 = 1 << 15;
/// Below the first line nobody knows how far below: half of it is where relaxing sees room and tightening sees nothing.
const BELOW: f64 = 0.5;

/// How many tasks are too many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// A number.
    Value(f64),
    /// A number for each CPU.
    PerCpu(f64),
}

/// What goes with the count, or stands in for it.
const CPUS: &str = "go_sched_gomaxprocs_threads";
/// In seconds since 1970.
const STARTED: &str = "process_start_time_seconds";
const FILES: &str = "process_open_fds";
const MOST_FILES: &str = "process_max_fds";
/// AIStore's, of targets and of proxies.
const FLAGS: [&str; 2] = ["ais_target_state_flags", "ais_proxy_state_flags"];
/// AIStore does not say when it started, but for how long it has run.
const UPTIMES: [&str; 2] = ["ais_target_uptime", "ais_proxy_uptime"];

/// What is looked for in a page.
#[derive(Clone, Debug)]
pub struct Probe {
    families: Families,
    names: Vec<String>,
    /// The gauge's threshold, or `None` for AIStore's alert bits.
    threshold: Option<Threshold>,
}

impl Probe {
    /// For a gauge.
    #[must_use]
    pub fn gauge(name: &str, threshold: Threshold) -> Self {
        let also = [CPUS, STARTED, FILES, MOST_FILES].into_iter().chain(UPTIMES).filter(|other| *other != name);
        Self::new(std::iter::once(name).chain(also), Some(threshold))
    }

    /// For AIStore's alert bits.
    #[must_use]
    pub fn flags() -> Self {
        Self::new(FLAGS.into_iter().chain(UPTIMES), None)
    }

    fn new<'n>(names: impl Iterator<Item = &'n str>, threshold: Option<Threshold>) -> Self {
        let names: Vec<String> = names.map(str::to_owned).collect();
        let families = Families::new(names.iter().map(String::as_str), threshold.is_some());
        Self { families, names, threshold }
    }

    /// Reads a page.
    pub fn read(&self, page: &[u8]) -> Result<Measure, Gap> {
        let mut scan = self.scan();
        scan.push(page);
        scan.end()
    }

    /// Begins to read a page that comes in pieces.
    #[must_use]
    pub fn scan(&self) -> Scan<'_> {
        Scan { probe: self, values: vec![Err(Gap::NoSeries); self.names.len()], gauge: None, line: Vec::new() }
    }
}

/// A page that is being read. Nothing of it is kept but a line that has begun.
pub struct Scan<'p> {
    probe: &'p Probe,
    values: Vec<Result<f64, Gap>>,
    /// Whether the page calls it a gauge, or nothing in particular.
    gauge: Option<bool>,
    line: Vec<u8>,
}

impl Scan<'_> {
    /// The next piece.
    pub fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        if !self.line.is_empty() {
            let end = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.lines(&line);
            }
        }
        let end = memrchr(b'\n', rest).map_or(0, |end| end + 1);
        self.lines(&rest[..end]);
        self.line.extend_from_slice(&rest[end..]);
    }

    fn lines(&mut self, lines: &[u8]) {
        for (which, found) in self.probe.families.find(lines) {
            match found {
                Found::Type(said) => self.gauge = self.gauge.or(Some(matches!(said, b"gauge" | b"untyped" | b"unknown"))),
                Found::Sample(sample) => {
                    let value = Some(sample.value).filter(|value| value.is_finite() && *value >= 0.0).ok_or(Gap::NotFinite);
                    self.values[which] = if self.values[which] == Err(Gap::NoSeries) { value } else { Err(Gap::SeveralSeries) };
                }
            }
        }
    }

    /// What the whole page says.
    pub fn end(mut self) -> Result<Measure, Gap> {
        let line = std::mem::take(&mut self.line);
        self.lines(&line);
        let Self { probe, values, gauge, .. } = self;
        let only = |name: &str| match probe.names.iter().position(|known| known == name) {
            Some(which) => values[which],
            None => Err(Gap::NoSeries),
        };
        // AIStore's proxies have names of their own.
        let either = |names: [&str; 2]| match only(names[0]) {
            Err(Gap::NoSeries) => only(names[1]),
            known => known,
        };
        let uptime = either(UPTIMES).ok();
        let Some(threshold) = probe.threshold else {
            return bits(either(FLAGS)?).map(|measure| Measure { uptime, ..measure });
        };
        if gauge == Some(false) {
            return Err(Gap::NotGauge);
        }
        let tasks = values[0]?;
        let threshold = match threshold {
            Threshold::Value(value) => value,
            Threshold::PerCpu(each) => each * only(CPUS).ok().filter(|cpus| *cpus >= 1.0).ok_or(Gap::NoCpus)?,
        };
        Ok(Measure {
            tasks: Some(tasks),
            threshold: Some(threshold),
            pressure: tasks / threshold,
            red: false,
            open_files: only(FILES).ok(),
            most_files: only(MOST_FILES).ok().filter(|most| *most > 0.0),
            started: only(STARTED).ok(),
            uptime,
        })
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Below 2^53, checked.
fn bits(flags: f64) -> Result<Measure, Gap> {
    if flags >= 9e15 {
        return Err(Gap::NotFinite);
    }
    let flags = flags as u64;
    let red = flags & RED != 0;
    let pressure = if red {
        2.0
    } else if flags & YELLOW != 0 {
        1.0
    } else {
        BELOW
    };
    Ok(Measure { pressure, red, ..Measure::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(page: &str, threshold: Threshold) -> Result<(f64, f64), Gap> {
        Probe::gauge("tasks", threshold).read(page.as_bytes()).map(|m| (m.tasks.unwrap_or(-1.0), m.pressure))
    }

    #[test]
    fn a_gauge_and_what_goes_with_it() {
        let page = "# TYPE tasks gauge\ntasks{x=\"y\"} 512\ngo_sched_gomaxprocs_threads 2\nprocess_open_fds 40\nprocess_max_fds 1024\nprocess_start_time_seconds 1.7e9\n";
        let measure = Probe::gauge("tasks", Threshold::PerCpu(512.0)).read(page.as_bytes()).expect("a measure");
        assert_eq!(
            measure,
            Measure {
                tasks: Some(512.0),
                threshold: Some(1024.0),
                pressure: 0.5,
                red: false,
                open_files: Some(40.0),
                most_files: Some(1024.0),
                started: Some(1.7e9),
                uptime: None
            }
        );
    }

    #[test]
    fn what_is_missing_is_never_zero() {
        let five = Threshold::Value(5.0);
        assert_eq!(read("other 1\n", five), Err(Gap::NoSeries));
        assert_eq!(read("", five), Err(Gap::NoSeries));
        assert_eq!(read("tasks 1\ntasks{a=\"b\"} 2\n", five), Err(Gap::SeveralSeries));
        assert_eq!(read("tasks NaN\n", five), Err(Gap::NotFinite));
        assert_eq!(read("tasks +Inf\n", five), Err(Gap::NotFinite));
        assert_eq!(read("tasks -1\n", five), Err(Gap::NotFinite));
        assert_eq!(read("# TYPE tasks counter\ntasks 1\n", five), Err(Gap::NotGauge));
        assert_eq!(read("tasks 1\n", Threshold::PerCpu(5.0)), Err(Gap::NoCpus));
        assert_eq!(read("tasks 1\ngo_sched_gomaxprocs_threads 0\n", Threshold::PerCpu(5.0)), Err(Gap::NoCpus));
        assert_eq!(read("tasks 0\n", five), Ok((0.0, 0.0)), "a zero that is there is one");
    }

    #[test]
    fn a_page_in_pieces_says_what_it_says_in_one() {
        let page = b"# TYPE tasks gauge\ntasks{x=\"y\"} 512\r\n\nother 1\ngo_sched_gomaxprocs_threads 2\nprocess_open_fds 40";
        let probe = Probe::gauge("tasks", Threshold::PerCpu(512.0));
        let whole = probe.read(page);
        assert_eq!(whole.map(|measure| (measure.pressure, measure.open_files)), Ok((0.5, Some(40.0))));
        for size in 1..page.len() {
            let mut scan = probe.scan();
            page.chunks(size).for_each(|piece| scan.push(piece));
            assert_eq!(scan.end(), whole, "pieces of {size}");
        }
    }

    #[test]
    fn aistores_own_pages_are_read() {
        let page = |name: &str| {
            let path = format!("{}/tests/fixtures/aistore/{name}.txt", env!("CARGO_MANIFEST_DIR"));
            std::fs::read(path).expect("a recording")
        };
        let flags = |name| Probe::flags().read(&page(name)).map(|m| m.pressure);
        assert_eq!(flags("60-metrics-target"), Ok(0.5));
        assert_eq!(flags("60b-metrics-proxy"), Ok(0.5));
        assert_eq!(flags("76c-metrics-red"), Ok(2.0));
        let count =
            |name| Probe::gauge("go_goroutines", Threshold::PerCpu(512.0)).read(&page(name)).map(|m| (m.tasks, m.threshold));
        assert_eq!(count("76c-metrics-red"), Ok((Some(2517.0), Some(1024.0))));
        assert_eq!(count("62b-metrics-proxy-goruntime"), Ok((Some(29.0), Some(1024.0))));
        assert_eq!(count("60-metrics-target"), Err(Gap::NoSeries), "without the feature there is no count");
        assert!(Probe::flags().read(&page("76c-metrics-red")).is_ok_and(|m| m.uptime.is_some_and(|uptime| uptime > 0.0)));
    }

    #[test]
    fn only_the_two_alert_bits_count() {
        let flags = |line: &str| Probe::flags().read(line.as_bytes()).map(|m| (m.pressure, m.red));
        assert_eq!(flags("ais_target_state_flags{node_id=\"t0\"} 2.097158e+06\n"), Ok((0.5, false)));
        assert_eq!(flags("ais_target_state_flags{node_id=\"t0\"} 2.129926e+06\n"), Ok((2.0, true)));
        assert_eq!(flags("ais_proxy_state_flags{node_id=\"p0\"} 16390\n"), Ok((1.0, false)));
        assert_eq!(flags("ais_proxy_state_flags{node_id=\"p0\"} NaN\n"), Err(Gap::NotFinite));
        assert_eq!(flags("go_goroutines 7\n"), Err(Gap::NoSeries));
    }
}
