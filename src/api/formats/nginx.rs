//! Format `nginx`: one file of directives for the `http` block, and one file, `KEY.upstream`, to include in each `upstream`
//! block.
//!
//! nginx has no value for "no limit": it closes each connection at once for 0, or refuses 0.

use super::super::{Limit, Value, flush::Reload};
use super::{HEADER, Spec, milliseconds};

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Limit::ServerIdleTimeout, "keepalive_timeout"),
        (Limit::ServerReadHeaderTimeout, "client_header_timeout"),
        (Limit::ServerMaxRequestsPerConn, "keepalive_requests"),
        (Limit::BackendMaxIdleConnsPerHost, "keepalive"),
        (Limit::BackendIdleConnTimeout, "keepalive_timeout"),
        (Limit::BackendMaxConnLifetime, "keepalive_time"),
    ],
    render: |named, _| {
        let mut files = [vec![format!("# {HEADER}")], vec![format!("# {HEADER}")]];
        for (limit, name, value) in named {
            let value = match value {
                Value::Duration(time) => format!("{}ms", milliseconds(*time)),
                Value::Count(n) => n.to_string(),
            };
            files[usize::from(limit.is_client())].push(format!("{name} {value};"));
        }
        let [http, upstream] = files.map(|lines| lines.join("\n") + "\n");
        vec![("", http), (".upstream", upstream)]
    },
    reader: "nginx",
    reload: |_| Reload::ALL_POOLS,
    inexpressible: |_, value| value.is_zero().then_some("nginx has no value for no limit"),
};
