//! Format `haproxy`: a file with one `defaults` section for HAProxy, beside the files of the user. Proxies use the section with
//! `from idleconn`.
//!
//! HAProxy has no timeout where none is set, which is also the meaning of 0 in a policy. A pool size of -1 means no limit.

use super::super::{Limit, Value, flush::Reload};
use super::{HEADER, MAX_MILLISECONDS, Spec, milliseconds};

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Limit::ServerIdleTimeout, "timeout http-keep-alive"),
        (Limit::ServerReadHeaderTimeout, "timeout http-request"),
        (Limit::BackendRequestTimeout, "timeout client"),
        (Limit::BackendResponseHeaderTimeout, "timeout server"),
        (Limit::BackendMaxIdleConnsPerHost, "pool-max-conn"),
        (Limit::BackendIdleConnTimeout, "pool-purge-delay"),
    ],
    render: |named, _| {
        let mut lines = vec![format!("# {HEADER}"), "defaults idleconn".into(), "    mode http".into()];
        let mut server = String::new();
        for (_, name, value) in named {
            let value = match value {
                Value::Duration(time) => format!("{}ms", milliseconds(*time)),
                Value::Count(0) => "-1".into(),
                Value::Count(n) => n.to_string(),
            };
            if name.starts_with("pool-") {
                server = format!("{server} {name} {value}");
            } else {
                lines.push(format!("    {name} {value}"));
            }
        }
        let has = |wanted: Limit| named.iter().any(|(limit, ..)| *limit == wanted);
        if has(Limit::ServerReadHeaderTimeout) && !has(Limit::ServerIdleTimeout) {
            // Without `timeout http-keep-alive`, HAProxy uses `timeout http-request` for idle connections too. With this line,
            // `timeout client` ends idle connections, as it does if neither is set.
            lines.push(format!("    timeout http-keep-alive {}ms", milliseconds(MAX_MILLISECONDS)));
        }
        if !server.is_empty() {
            lines.push(format!("    default-server{server}"));
        }
        vec![("", lines.join("\n") + "\n")]
    },
    reader: "HAProxy",
    reload: |_| Reload::ALL_POOLS,
    inexpressible: |limit, value| match value {
        Value::Duration(time) if time > MAX_MILLISECONDS => Some("HAProxy refuses times of more than 24 days"),
        _ if limit == Limit::BackendIdleConnTimeout && value.is_zero() => Some("HAProxy keeps no idle connection for 0"),
        _ => None,
    },
};
