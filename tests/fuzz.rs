//! Every parser of foreign input, with random and hostile inputs: no parser panics, and none takes more than 100 ms of CPU time
//! for one input.
//!
//! `IDLECONN_FUZZ` is the total number of inputs (by default 100,000 for each parser, of at most 256 bytes). `make fuzz` uses a
//! hundred million, a million of them of 64 KiB. A failure prints the parser, the seed and the beginning of the input.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use idleconn_operator::{
    api::{GoDuration, IdleConnectionPolicyStatus, Limit, LimitValues, StoredPolicy, adaptive_state::AdaptiveState},
    cli::lint::Linter,
    decide::{
        Change, NewValue,
        originals::{Log, Record},
    },
    signals::page::{Framing, Probe, Threshold},
    simulate::trace::Trace,
    targets::{aistore::wire, caddy::config, go_duration},
};

use serde::de::IgnoredAny;

const EACH: u64 = 100_000;
const SHORT: usize = 256;
const LONG: usize = 64 * 1024;
/// Maximum CPU time for one input.
const MOST: Duration = Duration::from_millis(100);
/// Number of inputs that are timed together. A batch that takes too long is timed input by input.
const BATCH: u64 = 64;

/// Parser, with material for its inputs.
struct Reader {
    name: &'static str,
    read: fn(&[u8]),
    seeds: &'static [&'static str],
    /// Words of the format.
    words: &'static [&'static str],
}

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e308",
    "-0.0",
    "18446744073709551615",
    "9223372036854775808",
    "1e-400",
    " ",
    "\n",
    "{\"\":",
    "[[[[[[[[",
    "\"a\":",
    "\"é\"",
];

const READERS: [Reader; 8] = [
    Reader {
        name: "exposition",
        read: exposition,
        seeds: &[
            "# TYPE go_goroutines gauge\ngo_goroutines 12\n# TYPE go_sched_gomaxprocs_threads gauge\ngo_sched_gomaxprocs_threads 8\n",
            "ais_target_state_flags{node_id=\"t0\"} 16384\nais_target_uptime 3.6e+12\nprocess_start_time_seconds 1.7e9\n# EOF\n",
        ],
        words: &[
            "# TYPE ",
            "# HELP ",
            "# EOF",
            "go_goroutines",
            "go_sched_gomaxprocs_threads",
            "{",
            "}",
            "=",
            "\"",
            "\\",
            "\n",
            " ",
            "\t",
            "\r",
            "gauge",
            "counter",
            "NaN",
            "+Inf",
            "-Inf",
            "1e308",
            "-0",
            "0x1p-1074",
            "1700000000000",
            ",",
            "le=\"",
            "\u{feff}",
            "_total",
        ],
    },
    Reader {
        name: "durations",
        read: durations,
        seeds: &["1h2m3s", "2562047h47m16s", "250us", "0", "-1.5h", "1d"],
        words: &[
            "h",
            "m",
            "s",
            "ms",
            "us",
            "µs",
            "ns",
            "d",
            ".",
            "-",
            "+",
            "0",
            "9",
            "18446744073709551616",
            "9223372036854775807",
            " ",
            "e9",
        ],
    },
    Reader {
        name: "AIStore",
        read: aistore,
        seeds: &[
            r#"{"uuid":"u","pmap":{"p0":{"daemon_id":"p0","public_net":{"direct_url":"http://10.0.0.1:51080"},"flags":4}},"tmap":{},"proxy_si":{"daemon_id":"p0"}}"#,
            r#"{"net":{"http":{"idle_conn_time":"6s","idle_conns":64,"idle_conns_per_host":8}},"periodic":{"stats_time":"10s"},"lastupdate_time":"2026-11-21 02:10:10.1 +0000 UTC m=+1.0"}"#,
            r#"{"tracker":{"up.ns.time":3600000000000},"k8s_pod_name":"ais-target-0"}"#,
            r#"{"message":"not ready","status":503}"#,
        ],
        words: JSON,
    },
    Reader {
        name: "Caddy",
        read: caddy,
        seeds: &[
            r#"{"web":{"listen":[":443"],"idle_timeout":"5m","routes":[{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"reverse_proxy","upstreams":[{"dial":"127.0.0.1:9"}],"transport":{"protocol":"http","keep_alive":{"idle_timeout":"2m"}}}]}]}]}]}}"#,
            r#"{"a":{"read_header_timeout":30000000000,"routes":[{"handle":[{"handler":"reverse_proxy","handle_response":[{"routes":[]}]}]}]}}"#,
        ],
        words: JSON,
    },
    Reader {
        name: "originals",
        read: originals,
        seeds: &[
            r#"{"units":{"pod/u:2019":{"name":"gw","address":"http://10.0.0.1:2019","target":{"type":"Caddy"},"sites":{"server.idleTimeout@web":"5m"}},"x":null}}"#,
        ],
        words: JSON,
    },
    Reader {
        name: "status.control",
        read: control,
        seeds: &[
            r#"{"control":{"events":3,"changed":{"server.idleTimeout":1700000000000},"contended":{"server.idleTimeout":[1,2,3]},"restart":{"change":1,"begun":[1],"nodes":[]}},"observedGeneration":2}"#,
            "o50 w1.2,0.9 e1 p3 zz",
        ],
        words: JSON,
    },
    Reader {
        name: "traces",
        read: traces,
        seeds: &["time,node,tasks,pooled_share\n0,a,100,0.5\n10,a,200,\n", "time,node,tasks\n2026-01-01T00:00:00Z,a,1e3\n"],
        words: &[
            "time",
            "node",
            "tasks",
            "pooled_share",
            ",",
            "\n",
            "\r\n",
            "\"",
            ";",
            "NaN",
            "1e300",
            "-1",
            "2026-01-01T00:00:00Z",
            "0",
        ],
    },
    Reader {
        name: "policies",
        read: policies,
        seeds: &[
            "apiVersion: idleconn.io/v1alpha1\nkind: IdleConnectionPolicy\nmetadata: {name: gw}\nspec:\n  target: {type: Caddy, caddy: {selector: {matchLabels: {app: gw}}}}\n  limits: {server: {idleTimeout: 30s}}\n",
            r#"{"apiVersion":"idleconn.io/v1alpha1","kind":"IdleConnectionPolicy","metadata":{"name":"gw"},"spec":{"target":{"type":"AIStore","aistore":{"endpoint":"http://a:1"}},"preset":"HighTraffic"},"status":{"control":{}}}"#,
        ],
        words: &[
            "{",
            "}",
            "[",
            "]",
            ": ",
            ", ",
            "- ",
            "\n",
            "  ",
            "&a",
            "*a",
            "|",
            ">",
            "!!binary",
            "---",
            "'",
            "\"",
            "#",
            "kind",
            "spec",
            "target",
            "limits",
            "server",
            "idleTimeout",
            "adaptive",
            "floor",
            "overrides",
            "preset",
            "null",
            "~",
            "0",
            "-1",
            "1e999",
            "30s",
            "status",
        ],
    },
];

fn exposition(input: &[u8]) {
    for probe in
        [Probe::gauge("go_goroutines", Threshold::PerCpu(512.0)), Probe::gauge("x", Threshold::Value(1.0)), Probe::flags()]
    {
        let whole = probe.read(input);
        // The same page in pieces, as it arrives from the network.
        let mut scan = probe.scan();
        for piece in input.chunks(if input.len() > SHORT { 1024 } else { 1 + input.len() % 37 }) {
            scan.push(piece);
        }
        let pieces = scan.end(Framing { is_whole: true, is_open_metrics: false });
        assert_eq!(format!("{whole:?}"), format!("{pieces:?}"), "a page is read the same in one piece and in several");
    }
}

fn durations(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = go_duration::parse(&text);
    if let Ok(duration) = text.parse::<GoDuration>() {
        let again = duration.to_string().parse::<GoDuration>().unwrap();
        assert_eq!(again.get(), duration.get(), "a duration is written as it is read");
    }
}

fn aistore(input: &[u8]) {
    if let Ok(map) = serde_json::from_slice::<wire::ClusterMap>(input) {
        let _ = map.exceeds();
    }
    if let Ok(member) = serde_json::from_slice::<wire::Member>(input) {
        let _ = (member.hosts(), member.in_maintenance());
    }
    if let Ok(config) = serde_json::from_slice::<wire::Config>(input) {
        for (limit, key) in
            [(Limit::IntraClusterIdleConnTimeout, "idle_conn_time"), (Limit::IntraClusterMaxIdleConns, "idle_conns")]
        {
            let _ = config.net.http.get(key).and_then(|raw| wire::value(limit, &raw));
        }
        let _ = wire::local_time(&config.lastupdate_time, Some("Sat, 21 Nov 2026 20:00:00 GMT"), jiff::Timestamp::UNIX_EPOCH);
    }
    if let Ok(status) = serde_json::from_slice::<wire::NodeStatus>(input) {
        let _ = (status.pod(), status.uptime());
    }
    let _ = wire::message(input);
}

fn caddy(input: &[u8]) {
    // The target does the same: it ignores input that is not JSON.
    let Some(text) = std::str::from_utf8(input).ok().filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok()) else {
        return;
    };
    let Ok(seen) = config::see(text) else { return };
    let _ = config::stored(&seen.sites);
    let changes: Vec<_> =
        seen.sites.into_keys().map(|site| Change { site, to: NewValue::Raw(Some(serde_json::json!("7s"))) }).collect();
    if let Ok(written) = config::apply(text, &changes) {
        serde_json::from_str::<IgnoredAny>(&written).expect("what is written is JSON");
        config::see(&written).expect("and can be read again");
    }
}

fn originals(input: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(input) {
        let mut log = Log::default();
        log.append(1, record.clone());
        log.append(i64::MAX, record);
        let _ = (log.units(), log.superseded(), log.next());
    }
}

fn control(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(state) = serde_json::from_slice::<AdaptiveState>(input) {
        let written = serde_json::to_string(&state).expect("a state");
        assert_eq!(serde_json::from_str::<AdaptiveState>(&written).ok(), Some(state), "a state is written as it is read");
    }
    let _ = serde_json::from_slice::<IdleConnectionPolicyStatus>(input);
    let object = format!(
        r#"{{"apiVersion":"idleconn.io/v1alpha1","kind":"IdleConnectionPolicy","metadata":{{"name":"gw"}},"spec":{{"target":{{"type":"Caddy","caddy":{{}}}}}},"status":{text}}}"#
    );
    let _ = serde_json::from_str::<StoredPolicy>(&object).map(StoredPolicy::read);
}

fn traces(input: &[u8]) {
    if let Ok(trace) = Trace::read(input, 100.0, &LimitValues::new()) {
        let _ = (trace.seconds(), trace.has_shares());
    }
}

thread_local! {
    static LINTER: Linter = Linter::new().unwrap();
}

fn policies(input: &[u8]) {
    let _ = serde_json::from_slice::<StoredPolicy>(input).map(StoredPolicy::read);
    let text = String::from_utf8_lossy(input);
    LINTER.with(|linter| {
        let _ = linter.file(std::path::Path::new("policy.yaml"), &text, None);
    });
}

/// Returns an input of at most `most` bytes: noise, words of the format, or a mutated seed.
fn input(random: &mut fastrand::Rng, reader: &Reader, most: usize) -> Vec<u8> {
    let length = random.usize(0..=most);
    let mut bytes = Vec::with_capacity(length + 32);
    match random.u8(0..8) {
        0 => bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(length)),
        1 | 2 => {
            while bytes.len() < length {
                bytes.extend(random.choice(reader.words).unwrap().bytes());
            }
        }
        // One repeated word finds nesting, and time that grows with the square of the length.
        3 => {
            let word = random.choice(reader.words).unwrap();
            bytes.extend(word.bytes().cycle().take(length));
        }
        _ => {
            let seed = random.choice(reader.seeds).unwrap().as_bytes();
            while bytes.len() + seed.len() <= length.max(seed.len()) {
                bytes.extend(seed);
            }
            for _ in 0..random.usize(1..6) {
                change(random, reader, &mut bytes);
            }
        }
    }
    bytes
}

fn change(random: &mut fastrand::Rng, reader: &Reader, bytes: &mut Vec<u8>) {
    let at = random.usize(0..=bytes.len());
    match random.u8(0..5) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
        1 => bytes.truncate(at),
        2 => {
            let end = (at + random.usize(0..16)).min(bytes.len());
            bytes.drain(at..end);
        }
        3 => {
            let end = (at + random.usize(0..32)).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        _ => {
            let word = random.choice(reader.words).unwrap();
            bytes.splice(at..at, word.bytes());
        }
    }
}

/// Returns the CPU time of this thread.
fn spent() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Runs a parser on `count` inputs, and fails if it panics or takes too long.
fn fuzz(reader: &Reader, count: u64, most: usize, seed: u64) {
    // Lazily created state is created before the timing starts.
    (reader.read)(reader.seeds[0].as_bytes());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut done = 0;
    while done < count {
        let batch: Vec<_> = (0..BATCH.min(count - done)).map(|_| input(&mut random, reader, most)).collect();
        done += batch.len() as u64;
        let began = Instant::now();
        for bytes in &batch {
            if catch_unwind(AssertUnwindSafe(|| (reader.read)(bytes))).is_err() {
                let shown: String = String::from_utf8_lossy(bytes).chars().take(600).collect();
                panic!("{} panicked (seed {seed}) at {} bytes: {shown:?}", reader.name, bytes.len());
            }
        }
        if began.elapsed() < MOST {
            continue;
        }
        for bytes in &batch {
            let before = spent();
            (reader.read)(bytes);
            let took = spent().saturating_sub(before);
            let shown: String = String::from_utf8_lossy(bytes).chars().take(300).collect();
            assert!(took <= MOST, "{} took {took:?} (seed {seed}) for {} bytes: {shown:?}", reader.name, bytes.len());
        }
    }
}

/// One in a hundred inputs of `make fuzz` is long.
fn shares() -> (u64, u64) {
    match std::env::var("IDLECONN_FUZZ").ok().and_then(|count| count.parse::<u64>().ok()) {
        None => (EACH, 200),
        Some(all) => (all / READERS.len() as u64 / 100 * 99, all / READERS.len() as u64 / 100),
    }
}

#[test]
fn no_reader_panics_or_takes_long_whatever_it_is_given() {
    let seed = std::env::var("IDLECONN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let (short, long) = shares();
    let began = Instant::now();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(reader) = READERS.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    fuzz(reader, short, SHORT, seed);
                    fuzz(reader, long, LONG, seed);
                    println!(
                        "{}: {short} inputs of up to {SHORT} bytes and {long} of up to {LONG}, after {:?}",
                        reader.name,
                        began.elapsed()
                    );
                }
            });
        }
    });
}
