//! Directives for nginx: one file for the `http` block, and one, `KEY.upstream`, to be included in each `upstream` block.
//!
//! To nginx a time of 0 is no keep-alive at all, so "no limit" is written as a year. There is no "no limit" of numbers either: of
//! requests it is the largest number there is, and of idle connections ten thousand, for nginx reserves memory for each (some 150 bytes, in every
//! worker process and for every upstream).

use std::time::Duration;

use super::super::{Knob, Value};
use super::{HEADER, Spec, milliseconds};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// The most requests that nginx takes for a number.
const REQUESTS: u32 = i32::MAX as u32;
/// More idle connections than one upstream ever has.
const CONNECTIONS: u32 = 10_000;

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Knob::ServerIdleTimeout, "keepalive_timeout"),
        (Knob::ServerReadHeaderTimeout, "client_header_timeout"),
        (Knob::ServerMaxRequestsPerConn, "keepalive_requests"),
        (Knob::BackendMaxIdleConnsPerHost, "keepalive"),
        (Knob::BackendIdleConnTimeout, "keepalive_timeout"),
        (Knob::BackendMaxConnLifetime, "keepalive_time"),
    ],
    render: |named, _| {
        let mut files = [vec![format!("# {HEADER}")], vec![format!("# {HEADER}")]];
        for (knob, name, value) in named {
            let value = match value {
                Value::Duration(time) if time.is_zero() => format!("{}ms", milliseconds(YEAR)),
                Value::Duration(time) => format!("{}ms", milliseconds(*time)),
                Value::Count(0) if *knob == Knob::ServerMaxRequestsPerConn => REQUESTS.to_string(),
                Value::Count(0) => CONNECTIONS.to_string(),
                Value::Count(n) => n.to_string(),
            };
            let server = matches!(knob, Knob::ServerIdleTimeout | Knob::ServerReadHeaderTimeout | Knob::ServerMaxRequestsPerConn);
            files[usize::from(!server)].push(format!("{name} {value};"));
        }
        let [http, upstream] = files.map(|lines| lines.join("\n") + "\n");
        vec![("", http), (".upstream", upstream)]
    },
    reader: "nginx",
};
