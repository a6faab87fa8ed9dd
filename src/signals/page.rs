//! Reads one node's measure from a metrics page.

use std::sync::Arc;

use memchr::{memchr, memrchr};

use super::{
    exposition::{Families, Found, without_mark},
    series::{Selection, Tally, Value},
};
use crate::decide::adaptive::signal::{Counter, IdleTasks, Measure, NoSample};

/// AIStore's yellow alert bit (`cmn/cos/node_state.go`): 512 or more goroutines per CPU.
const YELLOW: u64 = 1 << 14;
/// AIStore's red alert bit: 1024 or more goroutines per CPU.
const RED: u64 = 1 << 15;
/// Goroutines per CPU at which the yellow alert begins (`cmn/cos/node_state.go`, measured: `>=`, without hysteresis).
const YELLOW_AT: f64 = 512.0;
/// Goroutines per CPU at which the red alert begins (same source and measurement).
const RED_AT: f64 = 1024.0;
/// Utilization without an alert. The real value is unknown; half leaves room for relaxing and gives no reason to
/// tighten.
const BELOW: f64 = 0.5;

/// The task count that is too high.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// A fixed number.
    Value(f64),
    /// A number for each CPU.
    PerCpu(f64),
}

/// Number of CPUs that a Go process uses.
const CPUS: &str = "go_sched_gomaxprocs_threads";
/// Start time of the process, in seconds since 1970.
const STARTED: &str = "process_start_time_seconds";
const FILES: &str = "process_open_fds";
const MAX_FILES: &str = "process_max_fds";
/// AIStore's state flags, of targets and of proxies.
const FLAGS: [&str; 2] = ["ais_target_state_flags", "ais_proxy_state_flags"];
/// AIStore's uptime, of targets and of proxies; it exports no start time.
const UPTIMES: [&str; 2] = ["ais_target_uptime", "ais_proxy_uptime"];
/// Most bytes of a line. Longer lines are skipped, which bounds the memory for a page.
const MAX_LINE: usize = 64 * 1024;

/// Facts about the page from the response's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// Whether a truncated page would be noticed: its length is known, or it is chunked.
    pub is_whole: bool,
    /// The page is `OpenMetrics`: times are in seconds, and `# EOF` ends the page.
    pub is_open_metrics: bool,
}

/// The families to look for in a page.
#[derive(Clone, Debug)]
pub struct Probe {
    families: Arc<Families>,
    names: Vec<String>,
    /// Threshold of the gauge; `None` for AIStore's alert bits.
    threshold: Option<Threshold>,
    /// The series of the gauge to use.
    selection: Selection,
    /// The gauge of idle connections, if any, and the number of tasks for each of them.
    idle: Option<(Extra, f64)>,
    /// The counters of new connections and of requests, if any.
    counters: [Option<Extra>; 2],
}

/// A family besides the gauge of tasks.
#[derive(Clone, Debug)]
struct Extra {
    /// Index of its name in `names`.
    which: usize,
    selection: Selection,
}

/// Indexes of the counters.
const CONNECTIONS: usize = 0;
const REQUESTS: usize = 1;

impl Probe {
    /// Looks for a gauge.
    #[must_use]
    pub fn gauge(name: &str, threshold: Threshold) -> Self {
        let also = [CPUS, STARTED, FILES, MAX_FILES].into_iter().chain(UPTIMES).filter(|other| *other != name);
        Self::new(std::iter::once(name).chain(also), Some(threshold))
    }

    /// Uses only these series of the gauge.
    #[must_use]
    pub fn of_series(self, selection: Selection) -> Self {
        Self { selection, ..self }
    }

    /// Also reads the number of idle connections; each one costs this many tasks.
    #[must_use]
    pub fn with_idle(mut self, name: &str, selection: Selection, tasks: f64) -> Self {
        self.idle = Some((self.extra(name, selection), tasks));
        self.look()
    }

    /// Also reads the counter of new connections.
    #[must_use]
    pub fn with_connections(self, name: &str, selection: Selection) -> Self {
        self.with_counter(CONNECTIONS, name, selection)
    }

    /// Also reads the counter of requests.
    #[must_use]
    pub fn with_requests(self, name: &str, selection: Selection) -> Self {
        self.with_counter(REQUESTS, name, selection)
    }

    fn with_counter(mut self, counter: usize, name: &str, selection: Selection) -> Self {
        self.counters[counter] = Some(self.extra(name, selection));
        self.look()
    }

    /// A family that may be known already: other series of it may count something else.
    fn extra(&mut self, name: &str, selection: Selection) -> Extra {
        let known = self.names.iter().position(|known| known == name);
        let which = known.unwrap_or(self.names.len());
        if known.is_none() {
            self.names.push(name.to_owned());
        }
        Extra { which, selection }
    }

    /// Looks for all names, and for the types of the gauge and of the counters.
    fn look(self) -> Self {
        let typed = self.threshold.map(|_| 0).into_iter().chain(self.counters.iter().flatten().map(|counter| counter.which));
        let families = Families::shared(&self.names, typed.collect());
        Self { families, ..self }
    }

    /// Looks for AIStore's alert bits.
    #[must_use]
    pub fn flags() -> Self {
        Self::new(FLAGS.into_iter().chain(UPTIMES).chain([CPUS]), None)
    }

    fn new<'n>(names: impl Iterator<Item = &'n str>, threshold: Option<Threshold>) -> Self {
        let names: Vec<String> = names.map(str::to_owned).collect();
        let families = Families::shared(&names, threshold.map(|_| 0).into_iter().collect());
        Self { families, names, threshold, selection: Selection::default(), idle: None, counters: [None, None] }
    }

    /// Reads a complete page in Prometheus' format.
    pub fn read(&self, page: &[u8]) -> Result<Measure, NoSample> {
        let mut scan = self.scan();
        scan.push(page);
        scan.end(Framing { is_whole: true, is_open_metrics: false })
    }

    /// Starts to read a page that arrives in pieces.
    #[must_use]
    pub fn scan(&self) -> Scan<'_> {
        Scan {
            probe: self,
            found: vec![Tally::default(); self.names.len()],
            idle: Tally::default(),
            counters: [Tally::default(), Tally::default()],
            is_counter: [true, true],
            kind: None,
            line: Vec::new(),
            taken: 0,
            is_too_long: false,
            is_quiet: false,
            has_ended: false,
        }
    }
}

/// A page that is being read. Only an incomplete line is kept.
pub struct Scan<'p> {
    probe: &'p Probe,
    found: Vec<Tally>,
    /// Values of the gauge of idle connections.
    idle: Tally,
    /// Values of the counters.
    counters: [Tally; 2],
    /// Whether the type of each counter is acceptable.
    is_counter: [bool; 2],
    /// Whether the gauge's type is acceptable, once the page has a `# TYPE` line.
    kind: Option<Result<(), &'static str>>,
    line: Vec<u8>,
    /// Bytes of the lines so far: only the first line may have a byte order mark.
    taken: usize,
    /// Whether the current line is skipped.
    is_too_long: bool,
    /// Whether the last piece had none of the families.
    is_quiet: bool,
    /// Whether the last complete line was `# EOF`.
    has_ended: bool,
}

impl Scan<'_> {
    /// Reads the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        self.is_quiet = true;
        if !self.line.is_empty() || self.is_too_long {
            let end = memchr(b'\n', rest).map(|end| end + 1);
            self.begin(&rest[..end.unwrap_or(rest.len())]);
            let Some(end) = end else { return };
            rest = &rest[end..];
            self.is_too_long = false;
            let line = std::mem::take(&mut self.line);
            self.lines(&line);
        }
        let end = memrchr(b'\n', rest).map_or(0, |end| end + 1);
        self.lines(&rest[..end]);
        self.begin(&rest[end..]);
    }

    /// Keeps a part of an incomplete line.
    fn begin(&mut self, part: &[u8]) {
        if self.is_too_long || self.line.len() + part.len() > MAX_LINE {
            self.is_too_long = true;
            self.taken = self.taken.saturating_add(part.len());
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
    }

    /// Reads no more and discards an incomplete line.
    pub fn stop(&mut self) {
        self.line.clear();
    }

    /// Whether all expected families were seen and the page has gone on to others.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let wanted = self.probe.names.iter().zip(&self.found).filter(|(name, _)| !UPTIMES.contains(&name.as_str()));
        self.is_quiet && self.probe.threshold.is_some() && wanted.into_iter().all(|(_, tally)| !tally.is_empty())
    }

    fn lines(&mut self, mut lines: &[u8]) {
        if self.taken == 0 {
            lines = without_mark(lines);
        }
        self.taken = self.taken.saturating_add(lines.len());
        for (which, found) in self.probe.families.find(lines) {
            self.is_quiet = false;
            if let (Found::Sample(sample), Some((idle, _))) = (&found, &self.probe.idle)
                && idle.which == which
            {
                self.idle.add(sample, &idle.selection);
            }
            let counters = self.probe.counters.iter().enumerate();
            for (n, counter) in counters.filter_map(|(n, counter)| Some((n, counter.as_ref().filter(|it| it.which == which)?))) {
                match &found {
                    Found::Sample(sample) => self.counters[n].add(sample, &counter.selection),
                    Found::Type(said) => self.is_counter[n] = is_counter(said),
                    Found::Malformed => self.counters[n].malformed(),
                }
            }
            match found {
                Found::Type(said) if which == 0 => self.kind = self.kind.or_else(|| Some(gauge(said))),
                Found::Type(_) => {}
                Found::Sample(sample) if which == 0 => self.found[which].add(&sample, &self.probe.selection),
                Found::Sample(sample) => self.found[which].add(&sample, &Selection::default()),
                Found::Malformed => self.found[which].malformed(),
            }
        }
        let last = lines.trim_ascii_end();
        if !last.is_empty() {
            self.has_ended =
                last.ends_with(b"# EOF") && matches!(last.len().checked_sub(6).map(|at| last[at]), None | Some(b'\n'));
        }
    }

    /// The measure of the whole page. An incomplete last line counts only if the page cannot be truncated.
    pub fn end(mut self, framing: Framing) -> Result<Measure, NoSample> {
        let line = std::mem::take(&mut self.line);
        let is_cut = if framing.is_whole {
            self.lines(&line);
            false
        } else {
            self.lines(if line == b"# EOF" { &line } else { b"" });
            let is_begun = self.is_too_long || !line.trim_ascii().is_empty();
            (is_begun || framing.is_open_metrics) && !self.has_ended
        };
        match self.tell(framing) {
            Err(NoSample::NoSeries | NoSample::NoCpus) if is_cut => Err(NoSample::CutOff),
            // The missing rest may have another series or a newer sample.
            Ok(_) if is_cut && framing.is_open_metrics => Err(NoSample::CutOff),
            told => told,
        }
    }

    fn tell(&self, framing: Framing) -> Result<Measure, NoSample> {
        let Self { probe, found, idle: idles, kind, .. } = self;
        let value = |name: &str| match probe.names.iter().position(|known| known == name) {
            Some(0) => found[0].value(&probe.selection),
            Some(which) => found[which].value(&Selection::default()),
            None => Err(NoSample::NoSeries),
        };
        let only = |name: &str| value(name).map(|value| value.value);
        // AIStore's proxies use other names than its targets.
        let either = |names: [&str; 2]| match value(names[0]) {
            Err(NoSample::NoSeries) => value(names[1]),
            known => known,
        };
        let uptime = either(UPTIMES).ok().map(|uptime| uptime.value);
        let Some(threshold) = probe.threshold else {
            let Value { value, time } = either(FLAGS)?;
            let cpus = only(CPUS).ok().filter(|cpus| *cpus >= 1.0);
            return bits(value, cpus).map(|measure| Measure { uptime, time: time.map(|time| moment(time, framing)), ..measure });
        };
        if let Some(Err(kind)) = *kind {
            return Err(NoSample::NotGauge(kind));
        }
        let Value { value: tasks, time } = value(&probe.names[0])?;
        let threshold = match threshold {
            Threshold::Value(value) => value,
            Threshold::PerCpu(each) => each * only(CPUS).ok().filter(|cpus| *cpus >= 1.0).ok_or(NoSample::NoCpus)?,
        };
        let idle = probe.idle.as_ref().map_or(IdleTasks::NotRequested, |(idle, tasks)| {
            idles.value(&idle.selection).map_or(IdleTasks::Missing, |count| IdleTasks::Counted(count.value * tasks))
        });
        Ok(Measure {
            idle,
            connections: self.counter(CONNECTIONS, framing),
            requests: self.counter(REQUESTS, framing),
            tasks: Some(tasks),
            threshold: Some(threshold),
            pressure: tasks / threshold,
            open_files: only(FILES).ok(),
            most_files: only(MAX_FILES).ok().filter(|most| *most > 0.0),
            started: only(STARTED).ok(),
            uptime,
            time: time.map(|time| moment(time, framing)),
            ..Measure::default()
        })
    }

    /// Without the end of the page the sum may lack a series, and would jump when the series comes back.
    fn counter(&self, which: usize, framing: Framing) -> Counter {
        let is_whole = framing.is_whole || self.has_ended;
        let Some(counter) = &self.probe.counters[which] else { return Counter::NotRequested };
        let tally = &self.counters[which];
        let value = tally.value(&counter.selection).ok().filter(|_| self.is_counter[which] && is_whole);
        value.map_or(Counter::Missing, |value| Counter::Counted { value: value.value, series: tally.series() })
    }
}

/// Whether a type is a counter's. `OpenMetrics` names the type of `x_total` under `x`, so that it is not found.
fn is_counter(kind: &[u8]) -> bool {
    ["counter", "untyped", "unknown"].iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes()))
}

/// The time of a sample, in milliseconds.
#[allow(clippy::cast_possible_truncation)] // Values out of range saturate.
fn moment(time: f64, framing: Framing) -> i64 {
    (if framing.is_open_metrics { time * 1000.0 } else { time }) as i64
}

/// Whether a type is a gauge's. The error is the other type.
fn gauge(kind: &[u8]) -> Result<(), &'static str> {
    let is = |names: &[&str]| names.iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes()));
    if is(&["gauge", "untyped", "unknown"]) {
        return Ok(());
    }
    let other = ["counter", "histogram", "summary", "gaugehistogram", "stateset", "info"].into_iter().find(|name| is(&[name]));
    Err(other.unwrap_or("nonstandard type"))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Below 2^53, checked.
fn bits(flags: f64, cpus: Option<f64>) -> Result<Measure, NoSample> {
    if flags >= 9e15 {
        return Err(NoSample::NotFinite);
    }
    let flags = flags as u64;
    let red = flags & RED != 0;
    let (pressure, each) = if red {
        (2.0, RED_AT)
    } else if flags & YELLOW != 0 {
        (1.0, YELLOW_AT)
    } else {
        (BELOW, 0.0)
    };
    Ok(Measure { pressure, red, at_least: cpus.map(|cpus| cpus * each), ..Measure::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::adaptive::Aggregation;

    fn read(page: &str, threshold: Threshold) -> Result<(f64, f64), NoSample> {
        Probe::gauge("tasks", threshold).read(page.as_bytes()).map(|m| (m.tasks.unwrap_or(-1.0), m.pressure))
    }

    #[test]
    fn a_byte_order_mark_stands_before_the_page_and_nowhere_else() {
        let probe = Probe::gauge("tasks", Threshold::Value(1.0));
        for (page, told) in [
            ("\u{feff}tasks 7\n", Ok(Some(7.0))),
            ("\u{feff}# HELP tasks x\ntasks 7\n", Ok(Some(7.0))),
            ("x 1\n\u{feff}tasks 7\n", Err(NoSample::NoSeries)),
            ("\n\u{feff}tasks\n", Err(NoSample::NoSeries)),
        ] {
            for length in 1..=page.len() {
                let mut scan = probe.scan();
                page.as_bytes().chunks(length).for_each(|piece| scan.push(piece));
                let read = scan.end(Framing { is_whole: true, is_open_metrics: false });
                assert_eq!(read.map(|measure| measure.tasks), told, "{page:?} in pieces of {length}");
            }
        }
    }

    #[test]
    fn a_gauge_and_what_goes_with_it() {
        let page = "# TYPE tasks gauge\ntasks{x=\"y\"} 512\ngo_sched_gomaxprocs_threads 2\nprocess_open_fds 40\nprocess_max_fds 1024\nprocess_start_time_seconds 1.7e9\n";
        let measure = Probe::gauge("tasks", Threshold::PerCpu(512.0)).read(page.as_bytes()).expect("a measure");
        assert_eq!(
            measure,
            Measure {
                idle: IdleTasks::NotRequested,
                connections: Counter::NotRequested,
                requests: Counter::NotRequested,
                at_least: None,
                tasks: Some(512.0),
                threshold: Some(1024.0),
                pressure: 0.5,
                red: false,
                open_files: Some(40.0),
                most_files: Some(1024.0),
                started: Some(1.7e9),
                uptime: None,
                time: None,
            }
        );
    }

    #[test]
    fn what_is_missing_is_never_zero() {
        let five = Threshold::Value(5.0);
        assert_eq!(read("other 1\n", five), Err(NoSample::NoSeries));
        assert_eq!(read("", five), Err(NoSample::NoSeries));
        assert_eq!(read("tasks 1\ntasks{a=\"b\"} 2\n", five), Err(NoSample::SeveralSeries));
        assert_eq!(read("tasks one\n", five), Err(NoSample::Malformed));
        assert_eq!(read("# TYPE tasks summary\ntasks 1\n", five), Err(NoSample::NotGauge("summary")));
        assert_eq!(read("# TYPE tasks gage\ntasks 1\n", five), Err(NoSample::NotGauge("nonstandard type")));
        assert_eq!(read("# TYPE tasks GAUGE\ntasks 1\n", five), Ok((1.0, 0.2)));
        assert_eq!(read("tasks NaN\n", five), Err(NoSample::NotFinite));
        assert_eq!(read("tasks +Inf\n", five), Err(NoSample::NotFinite));
        assert_eq!(read("tasks -1\n", five), Err(NoSample::NotFinite));
        assert_eq!(read("# TYPE tasks counter\ntasks 1\n", five), Err(NoSample::NotGauge("counter")));
        assert_eq!(read("tasks 1\n", Threshold::PerCpu(5.0)), Err(NoSample::NoCpus));
        assert_eq!(read("tasks 1\ngo_sched_gomaxprocs_threads 0\n", Threshold::PerCpu(5.0)), Err(NoSample::NoCpus));
        assert_eq!(read("tasks 0\n", five), Ok((0.0, 0.0)), "a zero that is there is one");
    }

    #[test]
    fn a_page_in_pieces_says_what_it_says_in_one() {
        let page = b"# TYPE tasks gauge\ntasks{x=\"y\"} 512\r\n\nother 1\ngo_sched_gomaxprocs_threads 2\nprocess_open_fds 40";
        let probe = Probe::gauge("tasks", Threshold::PerCpu(512.0));
        let whole = probe.read(page);
        assert_eq!(whole.clone().map(|measure| (measure.pressure, measure.open_files)), Ok((0.5, Some(40.0))));
        for size in 1..page.len() {
            let mut scan = probe.scan();
            page.chunks(size).for_each(|piece| scan.push(piece));
            assert_eq!(scan.end(WHOLE), whole, "pieces of {size}");
        }
    }

    const WHOLE: Framing = Framing { is_whole: true, is_open_metrics: false };
    const CUT: Framing = Framing { is_whole: false, is_open_metrics: false };

    fn end(page: &str, framing: Framing) -> Result<(f64, Option<i64>), NoSample> {
        let probe = Probe::gauge("tasks", Threshold::Value(5.0));
        let mut scan = probe.scan();
        scan.push(page.as_bytes());
        scan.end(framing).map(|measure| (measure.tasks.unwrap_or(-1.0), measure.time))
    }

    #[test]
    fn a_last_line_that_may_be_cut_is_no_value() {
        assert_eq!(end("other 1\ntasks 12", WHOLE), Ok((12.0, None)), "the length is known: nothing is missing");
        assert_eq!(end("other 1\ntasks 12", CUT), Err(NoSample::CutOff), "it may have been 12345");
        assert_eq!(end("tasks 12\nother", CUT), Ok((12.0, None)));
        assert_eq!(end("tasks 12\n", CUT), Ok((12.0, None)));
        assert_eq!(end("other 1\n", CUT), Err(NoSample::NoSeries));
        let open = Framing { is_open_metrics: true, ..CUT };
        assert_eq!(end("tasks 12\n# EOF\n", open), Ok((12.0, None)));
        assert_eq!(end("tasks 12\n# EOF", open), Ok((12.0, None)));
        assert_eq!(end("tasks 12\n", open), Err(NoSample::CutOff), "OpenMetrics says where its end is");
    }

    #[test]
    fn times_are_in_the_units_of_their_format() {
        assert_eq!(end("tasks 12 1700000000123\n", WHOLE), Ok((12.0, Some(1_700_000_000_123))));
        let open = Framing { is_open_metrics: true, ..WHOLE };
        assert_eq!(end("tasks 12 1700000000.123\n# EOF\n", open), Ok((12.0, Some(1_700_000_000_123))));
        assert_eq!(end("tasks 12 NaN\n", WHOLE), Ok((12.0, Some(0))), "no time of today");
        assert_eq!(end("tasks 12 1e300\n", WHOLE), Ok((12.0, Some(i64::MAX))));
    }

    #[test]
    fn a_line_is_held_only_up_to_a_bound() {
        let long = format!("x{{y=\"{}\"}} 1\n", "z".repeat(3 * MAX_LINE));
        let page = format!("{long}tasks 12\n{long}");
        let probe = Probe::gauge("tasks", Threshold::Value(5.0));
        for size in [1000, MAX_LINE, MAX_LINE + 1] {
            let mut scan = probe.scan();
            for piece in page.as_bytes().chunks(size) {
                scan.push(piece);
                assert!(scan.line.capacity() <= 2 * MAX_LINE, "{}", scan.line.capacity());
            }
            assert_eq!(scan.end(WHOLE).map(|measure| measure.tasks), Ok(Some(12.0)), "pieces of {size}");
        }
    }

    #[test]
    fn a_large_page_is_complete_when_all_families_have_been_seen_and_something_else_comes() {
        let probe = Probe::gauge("tasks", Threshold::Value(5.0));
        let mut scan = probe.scan();
        scan.push(b"tasks 12\n");
        scan.push(b"other 1\n");
        assert!(!scan.is_complete(), "no start time yet");
        scan.push(b"go_sched_gomaxprocs_threads 2\nprocess_start_time_seconds 1\nprocess_open_fds 1\nprocess_max_fds 1\n");
        assert!(!scan.is_complete(), "more of the last one may come");
        scan.push(b"other 1\n");
        assert!(scan.is_complete());
    }

    #[test]
    fn idle_connections_are_read_beside_the_tasks() {
        let page = "connections{state=\"active\"} 7\nconnections{state=\"idle\",listener=\"a\"} 30\n\
            connections{state=\"idle\",listener=\"b\"} 12\ntasks 512\n";
        let of = |metric: &str, labels: &[(&str, &str)], aggregation| {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let probe =
                Probe::gauge("tasks", Threshold::Value(1024.0)).with_idle(metric, Selection::new(labels, aggregation), 2.0);
            probe.read(page.as_bytes()).map(|measure| (measure.tasks, measure.idle))
        };
        let (idle, one) = ([("state", "idle")], Aggregation::ExactlyOne);
        assert_eq!(of("connections", &idle, Aggregation::Sum), Ok((Some(512.0), IdleTasks::Counted(84.0))));
        assert_eq!(of("connections", &[("state", "active")], one), Ok((Some(512.0), IdleTasks::Counted(14.0))));
        for (metric, labels) in [("connections", &idle[..]), ("connections", &[("state", "none")]), ("nothing", &[])] {
            assert_eq!(of(metric, labels, one), Ok((Some(512.0), IdleTasks::Missing)), "{metric} {labels:?}");
        }
        assert_eq!(of("tasks", &[], one), Ok((Some(512.0), IdleTasks::Counted(1024.0))), "the gauge of tasks itself");
    }

    #[test]
    fn counters_are_read_beside_the_tasks_and_summed() {
        let page = "# TYPE got counter\ngot{reused=\"false\",pool=\"a\"} 7\ngot{reused=\"false\",pool=\"b\"} 3\n\
            got{reused=\"true\",pool=\"a\"} 90\n# TYPE open gauge\nopen 4\n# TYPE opened untyped\nopened 5\nbare 6\nbroken x\nbad NaN\ntasks 512\n";
        let of = |metric: &str, labels: &[(&str, &str)]| {
            let select = |labels: &[(&str, &str)]| {
                let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
                Selection::new(labels, Aggregation::Sum)
            };
            let probe = Probe::gauge("tasks", Threshold::Value(1024.0))
                .with_idle("open", Selection::default(), 1.0)
                .with_connections(metric, select(labels))
                .with_requests("got", select(&[]));
            let measure = probe.read(page.as_bytes()).expect("a measure");
            assert_eq!((measure.tasks, measure.idle), (Some(512.0), IdleTasks::Counted(4.0)), "as without the counters");
            assert_eq!(measure.requests, Counter::Counted { value: 100.0, series: 3 }, "other series of the same family");
            measure.connections
        };
        assert_eq!(of("got", &[("reused", "false")]), Counter::Counted { value: 10.0, series: 2 });
        assert_eq!(of("opened", &[]), Counter::Counted { value: 5.0, series: 1 });
        assert_eq!(of("bare", &[]), Counter::Counted { value: 6.0, series: 1 }, "without a type");
        for (metric, labels) in [("got", &[("reused", "no")][..]), ("nothing", &[]), ("broken", &[]), ("bad", &[]), ("open", &[])]
        {
            assert_eq!(of(metric, labels), Counter::Missing, "{metric} {labels:?}: never 0");
        }
    }

    #[test]
    fn counters_of_a_page_that_may_be_cut_are_missing() {
        let probe =
            Probe::gauge("tasks", Threshold::Value(5.0)).with_connections("got", Selection::new([].into(), Aggregation::Sum));
        let counted = |page: &str, framing| {
            let mut scan = probe.scan();
            scan.push(page.as_bytes());
            scan.end(framing).map(|measure| (measure.tasks, measure.connections))
        };
        let (page, both) = ("tasks 1\ngot{a=\"1\"} 2\ngot{a=\"2\"} 3\n", Counter::Counted { value: 5.0, series: 2 });
        assert_eq!(counted(page, WHOLE), Ok((Some(1.0), both)));
        assert_eq!(counted(page, CUT), Ok((Some(1.0), Counter::Missing)), "another series may follow");
        assert_eq!(counted(&format!("{page}# EOF\n"), CUT), Ok((Some(1.0), both)));
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
        let least = |name| Probe::flags().read(&page(name)).map(|m| m.at_least);
        assert_eq!(least("76c-metrics-red"), Ok(Some(2048.0)), "1024 and more a CPU, and it has 2; there were 2517");
        assert_eq!(least("62-metrics-target-goruntime"), Ok(Some(0.0)), "no alert");
        assert_eq!(least("60-metrics-target"), Ok(None), "without the feature it does not say how many CPUs it has");
        let count =
            |name| Probe::gauge("go_goroutines", Threshold::PerCpu(512.0)).read(&page(name)).map(|m| (m.tasks, m.threshold));
        assert_eq!(count("76c-metrics-red"), Ok((Some(2517.0), Some(1024.0))));
        assert_eq!(count("62b-metrics-proxy-goruntime"), Ok((Some(29.0), Some(1024.0))));
        assert_eq!(count("60-metrics-target"), Err(NoSample::NoSeries), "without the feature there is no count");
        assert!(Probe::flags().read(&page("76c-metrics-red")).is_ok_and(|m| m.uptime.is_some_and(|uptime| uptime > 0.0)));
    }

    #[test]
    fn only_the_two_alert_bits_count() {
        let flags = |line: &str| Probe::flags().read(line.as_bytes()).map(|m| (m.pressure, m.red));
        assert_eq!(flags("ais_target_state_flags{node_id=\"t0\"} 2.097158e+06\n"), Ok((0.5, false)));
        assert_eq!(flags("ais_target_state_flags{node_id=\"t0\"} 2.129926e+06\n"), Ok((2.0, true)));
        assert_eq!(flags("ais_proxy_state_flags{node_id=\"p0\"} 16390\n"), Ok((1.0, false)));
        assert_eq!(flags("ais_proxy_state_flags{node_id=\"p0\"} NaN\n"), Err(NoSample::NotFinite));
        assert_eq!(flags("go_goroutines 7\n"), Err(NoSample::NoSeries));
    }
}
