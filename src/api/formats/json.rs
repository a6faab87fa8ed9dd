//! Format `json`: the content of the format `yaml`, as JSON.

use super::super::limits::GO;
use super::{Spec, inexpressible_in_go, reload_in_go, tree};

pub(super) const FORMAT: Spec = Spec {
    fields: GO,
    render: |named, _| vec![("", format!("{:#}\n", tree(named)))],
    reader: "Go services (examples/go-service)",
    reload: reload_in_go,
    inexpressible: inexpressible_in_go,
};
