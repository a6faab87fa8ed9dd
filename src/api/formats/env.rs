//! Lines for an environment: `Backend_MaxIdleConns=100`, Go's own names behind the pool's. No quoting is ever needed.

use super::super::limits::GO_ENV;
use super::{HEADER, Spec, inexpressible_in_go, reload_in_go};

pub(super) const FORMAT: Spec = Spec {
    fields: GO_ENV,
    render: |named, _| {
        let lines: Vec<_> = named.iter().map(|(_, name, value)| format!("{name}={value}")).collect();
        vec![("", [&[format!("# {HEADER}")], &lines[..], &[String::new()]].concat().join("\n"))]
    },
    reader: "anything that is started with an environment file",
    reload: reload_in_go,
    inexpressible: inexpressible_in_go,
};
