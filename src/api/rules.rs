//! CEL rules about more than one field, generated so that they include the presets.
//!
//! Every message names the fields and the fix, because a user of `kubectl apply` sees nothing else.

use serde_json::json;

use super::{Limit, Value, adaptive, limits::WITHIN, preset};

/// Longer than every duration that the schema accepts (four parts of 99999 hours).
const FOREVER: &str = "duration('2000000h')";
/// Larger than every count that the schema accepts.
const COUNTLESS: &str = "2000000";

/// Appends the rules to the schema of the spec.
pub(super) fn spec(schema: &mut schemars::Schema) {
    let rules: Vec<_> = pool_rules()
        .into_iter()
        .chain([pair_rule()])
        .chain(aistore_rules())
        .chain(floor_rules())
        .chain([update_rule()])
        .map(|(rule, message)| json!({"rule": rule, "message": message, "reason": "FieldValueInvalid"}))
        .collect();
    schema.insert("x-kubernetes-validations".into(), rules.into());
    // `kubectl explain` shows the table from which the rules are made.
    let row = |row: &preset::Row| {
        let preset::Row { preset: _, name, server_idle, client_idle, total_idle, idle_per_host, conns_per_host, purpose } = row;
        let conns = conns_per_host.map(|most| format!(", connections per host {most}")).unwrap_or_default();
        format!(
            "{name}: server idle {server_idle}s, client idle {client_idle}s, total idle {total_idle}, idle per host {idle_per_host}{conns} \
             ({purpose})"
        )
    };
    let table: Vec<_> = preset::TABLE.iter().map(row).collect();
    if let Some(preset) = schema.pointer_mut("/properties/preset") {
        let about = "Named set of starting values. A limit in `limits` overrides the value of the preset. Absent: none";
        preset["description"] = format!("{about}. {}.", table.join(". ")).into();
    }
    let row = |row: &adaptive::ProfileRow| {
        let [hour, day] = [row.max_changes_per_hour, row.max_changes_per_day];
        format!(
            "{}: tightens after {}s by at most {}% of the openness, relaxes after {}s by {} percentage points, {hour} changes per \
             hour, {day} per day ({})",
            row.profile, row.tighten_after, row.most_cut_percent, row.relax_after, row.relax_step_percent, row.purpose
        )
    };
    let table: Vec<_> = adaptive::PROFILES.iter().map(row).collect();
    if let Some(profile) = schema.pointer_mut("/properties/adaptive/properties/behavior/properties/profile") {
        profile["description"] =
            format!("Profile that supplies the value of each field that is absent here. {}.", table.join(". ")).into();
    }
}

/// Appends the rules to the schema of the target: exactly one member is set, and the type names it. `members` has the name of
/// each type with that of its member.
pub(super) fn target(schema: &mut schemars::Schema, members: &[(&str, &str)]) {
    let joined = |of: &dyn Fn(&(&str, &str)) -> String, by: &str| members.iter().map(of).collect::<Vec<_>>().join(by);
    let count = joined(&|(_, member)| format!("(has(self.{member}) ? 1 : 0)"), " + ");
    let names = joined(&|(_, member)| (*member).to_owned(), ", ");
    let same = joined(&|(kind, member)| format!("has(self.{member}) == (self.type == '{kind}')"), " && ");
    let pairs = joined(&|(kind, member)| format!("{kind} with {member}"), ", ");
    let rules = json!([
        {"rule": format!("{count} == 1"), "message": format!("target: set exactly one of {names}")},
        {"rule": same, "message": format!("target.type must name the member that is set: {pairs}")},
        {"rule": "self.type == oldSelf.type", "message": "target.type is immutable: delete the policy and create another",
         "reason": "FieldValueForbidden"},
    ]);
    schema.insert("x-kubernetes-validations".into(), rules);
}

/// Returns `has(self.limits) && has(self.limits.backend) && …` for a limit.
fn present(key: Limit) -> String {
    present_at(&format!("limits.{key}"))
}

/// Returns the same expression for the floor of a limit.
fn floored(key: Limit) -> String {
    present_at(&format!("adaptive.floor.{key}"))
}

/// Returns the same expression for a path: every object on the way must be there, too.
fn present_at(path: &str) -> String {
    let ends = path.match_indices('.').map(|(end, _)| end).chain([path.len()]);
    ends.map(|end| format!("has(self.{})", &path[..end])).collect::<Vec<_>>().join(" && ")
}

/// Returns an expression for the floor; without a floor, for the value of limits and preset; without either, `unset`.
fn effective_floor(key: Limit, unset: &str) -> String {
    format!("({} ? self.adaptive.floor.{} : {})", floored(key), key.path(), effective(key, unset))
}

fn field(key: Limit) -> String {
    format!("self.limits.{}", key.path())
}

fn literal(value: Value) -> String {
    match value {
        Value::Duration(d) => format!("duration('{}s')", d.as_secs()),
        Value::Count(n) => n.to_string(),
    }
}

/// Returns an expression for the value of a limit from limits and preset; without one, `unset`.
fn effective(key: Limit, unset: &str) -> String {
    let rows: Vec<_> =
        preset::TABLE.iter().filter_map(|row| Some(format!("'{}': {}", row.name, literal(row.value(key)?)))).collect();
    let table = format!("{{{}}}", rows.join(", "));
    let otherwise = match rows.len() {
        0 => unset.to_owned(),
        all if all == preset::TABLE.len() => format!("(has(self.preset) ? {table}[self.preset] : {unset})"),
        _ => format!("(has(self.preset) && self.preset in {table} ? {table}[self.preset] : {unset})"),
    };
    format!("({} ? {} : {otherwise})", present(key), field(key))
}

/// A pool cannot keep more idle connections to one host than in total, or than it may open to that host.
fn pool_rules() -> Vec<(String, String)> {
    let rule = |(part, whole)| {
        let limit = effective(whole, COUNTLESS);
        (
            format!("{limit} == 0 || {} <= {limit}", effective(part, "0")),
            format!("limits.{part} must not exceed limits.{whole}: lower the first or raise the second (preset may set either)"),
        )
    };
    WITHIN.into_iter().map(rule).collect()
}

/// A client must close an idle connection before its server does. Otherwise it sends requests on connections that the server has
/// closed.
fn pair_rule() -> (String, String) {
    let client = effective(Limit::IntraClusterIdleConnTimeout, "duration('1ms')");
    let server = effective(Limit::ServerIdleTimeout, FOREVER);
    (
        format!(
            "{server} == duration('0s') || {server} == {FOREVER} || ({client} > duration('0s') && {client} + duration('1s') <= {server})"
        ),
        "limits.intraCluster.idleConnTimeout must be at least 1s shorter than limits.server.idleTimeout: \
         a client must close an idle connection before its server does (preset may set either)"
            .into(),
    )
}

/// Elsewhere the operator does not choose which node takes a change first.
fn update_rule() -> (String, String) {
    (
        "!has(self.updateStrategy) || self.target.type == 'Caddy'".into(),
        "updateStrategy is only for target.type Caddy, where one write reaches one node: the kubelet spreads a ConfigMap, and an \
         AIStore cluster takes each write as a whole"
            .into(),
    )
}

/// A floor must not exceed its limit, and the rules for limits also apply to floors. They then hold for every openness in
/// between.
fn floor_rules() -> Vec<(String, String)> {
    let zero = |key: Limit| if key.is_count() { "0" } else { "duration('0s')" };
    let under = Limit::ALL.into_iter().map(|key| {
        let (zero, floor, limit) = (zero(key), format!("self.adaptive.floor.{}", key.path()), effective(key, zero(key)));
        (
            format!("!({}) || ({floor} > {zero} && {limit} > {zero} && {floor} <= {limit})", floored(key)),
            format!(
                "adaptive.floor.{key} must be more than 0 and must not exceed limits.{key}, which must be set and not 0 \
                 (by limits or preset)"
            ),
        )
    });
    let pools = WITHIN.into_iter().map(|(part, whole)| {
        let limit = effective_floor(whole, COUNTLESS);
        (
            format!("!({}) || {limit} == 0 || {} <= {limit}", floored(whole), effective_floor(part, "0")),
            format!(
                "adaptive.floor.{whole} must not be less than adaptive.floor.{part} (or than limits.{part} without a floor): \
                 raise the first or set the second as low"
            ),
        )
    });
    let server = Limit::ServerIdleTimeout;
    let client = effective_floor(Limit::IntraClusterIdleConnTimeout, "duration('0s')");
    let pair = (
        format!(
            "!({}) || {client} == duration('0s') || {client} + duration('1s') <= {}",
            floored(server),
            effective_floor(server, FOREVER)
        ),
        "adaptive.floor.intraCluster.idleConnTimeout must be at least 1s shorter than adaptive.floor.server.idleTimeout: \
         a client must close an idle connection before its server does, at every openness"
            .into(),
    );
    let flags = (
        "!has(self.adaptive) || !has(self.adaptive.signal) || !has(self.adaptive.signal.source) || \
         self.adaptive.signal.source != 'StateFlags' || self.target.type == 'AIStore'"
            .into(),
        "adaptive.signal.source: only AIStore has StateFlags; use Nodes or Prometheus".into(),
    );
    let series = (
        "!has(self.adaptive) || !has(self.adaptive.signal) || has(self.adaptive.signal.source) || self.target.type != 'AIStore' || \
         (!has(self.adaptive.signal.matchLabels) && (!has(self.adaptive.signal.aggregation) || self.adaptive.signal.aggregation == 'ExactlyOne'))"
            .into(),
        "adaptive.signal: matchLabels and aggregation need source: Nodes; set it, because AIStore's default is StateFlags".into(),
    );
    let on_pages = ["idleConnections", "newConnections"].map(|field| {
        (
            format!(
                "!has(self.adaptive) || !has(self.adaptive.signal) || !has(self.adaptive.signal.{field}) || \
                 has(self.adaptive.signal.source) || self.target.type != 'AIStore'"
            ),
            format!("adaptive.signal.{field} needs source: Nodes; set it, because AIStore's default is StateFlags"),
        )
    });
    let pages = (
        "!has(self.target.configMap) || has(self.target.configMap.metrics) || !has(self.adaptive) || self.adaptive.mode == 'Disabled' || \
         (has(self.adaptive.signal) && has(self.adaptive.signal.source) && self.adaptive.signal.source != 'Nodes')"
            .into(),
        "target.configMap.metrics must be set: adaptive control reads the task count from the pods' metrics page \
         (or use adaptive.signal.source: Prometheus)"
            .into(),
    );
    let places = (
        "!has(self.overrides) || self.overrides.all(o, has(o.provider) ? \
         (has(self.target.configMap) && self.target.configMap.format == 'http-connection-pool') : self.target.type == 'Caddy')"
            .into(),
        "overrides: role and nodes need target Caddy, and provider needs a ConfigMap in the format http-connection-pool; other \
         targets have no overrides"
            .into(),
    );
    let once = (
        "!has(self.overrides) || self.overrides.all(o, !has(o.role) || self.overrides.exists_one(p, has(p.role) && p.role == o.role)) && \
         self.overrides.all(o, !has(o.provider) || self.overrides.exists_one(p, has(p.provider) && p.provider == o.provider))"
            .into(),
        "overrides: each role and each provider may occur only once; merge the overrides".into(),
    );
    under.chain(pools).chain([pair, flags, series]).chain(on_pages).chain([pages, places, once]).collect()
}

/// Ranges of AIStore. AIStore replaces 0 by a default, so 0 would not mean "no limit".
fn aistore_rules() -> Vec<(String, String)> {
    let only_aistore = |key, test: &str, range: &str| {
        (
            format!("self.target.type != 'AIStore' || !({}) || ({})", present(key), test.replace('X', &field(key))),
            format!("limits.{key}: AIStore accepts {range}"),
        )
    };
    vec![
        only_aistore(
            Limit::IntraClusterIdleConnTimeout,
            "X > duration('0s') && X <= duration('29s')",
            "1ms to 29s; its servers close at 30s, and 0 would mean its default of 6s",
        ),
        only_aistore(Limit::IntraClusterMaxIdleConns, "X >= 1 && X <= 4096", "1 to 4096"),
        only_aistore(Limit::IntraClusterMaxIdleConnsPerHost, "X >= 1 && X <= 128", "1 to 128; 0 would mean its default of 32"),
        only_aistore(Limit::BackendIdleConnTimeout, "X > duration('0s')", "more than 0s; 0 would mean its default of 6s"),
    ]
}
