//! What a metrics page says of one node.

use super::exposition::Family;
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

/// What is looked for in a page.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The gauge, or `None` for AIStore's alert bits.
    gauge: Option<(Family, Threshold)>,
    cpus: Family,
    started: Family,
    files: Family,
    flags: [Family; 2],
    uptimes: [Family; 2],
}

impl Probe {
    /// For a gauge.
    #[must_use]
    pub fn gauge(name: &str, threshold: Threshold) -> Self {
        Self { gauge: Some((Family::new(name), threshold)), ..Self::flags() }
    }

    /// For AIStore's alert bits.
    #[must_use]
    pub fn flags() -> Self {
        Self {
            gauge: None,
            cpus: Family::new("go_sched_gomaxprocs_threads"),
            started: Family::new("process_start_time_seconds"),
            files: Family::new("process_open_fds"),
            flags: [Family::new("ais_target_state_flags"), Family::new("ais_proxy_state_flags")],
            uptimes: [Family::new("ais_target_uptime"), Family::new("ais_proxy_uptime")],
        }
    }

    /// Reads a page.
    pub fn read(&self, page: &[u8]) -> Result<Measure, Gap> {
        let Some((gauge, threshold)) = &self.gauge else { return self.bits(page) };
        if gauge.kind(page).is_some_and(|kind| !matches!(kind, b"gauge" | b"untyped" | b"unknown")) {
            return Err(Gap::NotGauge);
        }
        let tasks = only(gauge, page)?;
        let threshold = match threshold {
            Threshold::Value(value) => *value,
            Threshold::PerCpu(each) => each * only(&self.cpus, page).ok().filter(|cpus| *cpus >= 1.0).ok_or(Gap::NoCpus)?,
        };
        let also = |family: &Family| only(family, page).ok();
        Ok(Measure {
            tasks: Some(tasks),
            threshold: Some(threshold),
            pressure: tasks / threshold,
            red: false,
            open_files: also(&self.files),
            started: also(&self.started),
            uptime: self.uptime(page),
        })
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Below 2^53, checked.
    fn bits(&self, page: &[u8]) -> Result<Measure, Gap> {
        let flags = self
            .flags
            .iter()
            .map(|family| only(family, page))
            .find(|flags| *flags != Err(Gap::NoSeries))
            .unwrap_or(Err(Gap::NoSeries))?;
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
        Ok(Measure { pressure, red, uptime: self.uptime(page), ..Measure::default() })
    }

    /// AIStore does not say when it started, but for how long it has run.
    fn uptime(&self, page: &[u8]) -> Option<f64> {
        self.uptimes.iter().find_map(|family| only(family, page).ok())
    }
}

/// The value of the only series of a family.
fn only(family: &Family, page: &[u8]) -> Result<f64, Gap> {
    let mut samples = family.samples(page);
    let value = samples.next().ok_or(Gap::NoSeries)?.value;
    if samples.next().is_some() {
        return Err(Gap::SeveralSeries);
    }
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(Gap::NotFinite) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(page: &str, threshold: Threshold) -> Result<(f64, f64), Gap> {
        Probe::gauge("tasks", threshold).read(page.as_bytes()).map(|m| (m.tasks.unwrap_or(-1.0), m.pressure))
    }

    #[test]
    fn a_gauge_and_what_goes_with_it() {
        let page = "# TYPE tasks gauge\ntasks{x=\"y\"} 512\ngo_sched_gomaxprocs_threads 2\nprocess_open_fds 40\nprocess_start_time_seconds 1.7e9\n";
        let measure = Probe::gauge("tasks", Threshold::PerCpu(512.0)).read(page.as_bytes()).expect("a measure");
        assert_eq!(
            measure,
            Measure {
                tasks: Some(512.0),
                threshold: Some(1024.0),
                pressure: 0.5,
                red: false,
                open_files: Some(40.0),
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
