//! Format `yaml`: YAML with the field names of Go's `http.Server`, `http.Transport`, `net.Dialer` and `http.Client`, and Go's
//! spelling of durations.

use super::super::limits::GO;
use super::{HEADER, Spec, inexpressible_in_go, reload_in_go, tree};

pub(super) const FORMAT: Spec = Spec {
    fields: GO,
    render: |named, _| {
        let text = serde_saphyr::to_string(&tree(named)).unwrap_or_default();
        vec![("", format!("# {HEADER}\n{}\n", text.trim_end()))]
    },
    reader: "Go services (examples/go-service)",
    reload: reload_in_go,
    inexpressible: inexpressible_in_go,
};
