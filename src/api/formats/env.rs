//! Format `env`: lines of an environment file such as `Backend_MaxIdleConns=100`, the name of the pool and Go's name of the
//! limit. No value needs quotes.

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
