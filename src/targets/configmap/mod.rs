//! Any server that mounts a file: the limits are a key of a `ConfigMap`. It is written by server-side apply, only with
//! the operator's fields.
//!
//! Written limits are not in effect yet: the kubelet needs a minute or two to update the file, and the process must
//! read it. A pod uses them if it reports so, or if it certainly started later. See docs/targets/configmap.md.

mod ownership;
mod reported;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value as Json, json};

use super::{Connection, Kind, Reach, Target, TargetAddress, go_duration};
use crate::{
    api::{
        CREATED, Format, GoDuration, Limit, LimitValues, MANAGER, SETTINGS_PREFIX, Value,
        adaptive::Source,
        config_map::{ConfigMap as Spec, Page},
    },
    decide::{Cause, Change, ConfigPath, Fault, NewValue, NodeState, PacedBy, Stored, TargetCapabilities, Unit, UnitState},
    pool::Request,
};

/// Timeout of a call to the API server.
const API: Duration = Duration::from_secs(10);
/// Timeout for the report of a pod.
const PAGE: Duration = Duration::from_secs(2);
/// Most pods that are read at the same time.
const CONCURRENCY: usize = 32;

/// The capabilities of every file in this format.
#[must_use]
pub fn traits(format: Format) -> TargetCapabilities {
    let value = |limit, raw: &Json| value(limit, raw.as_str()?);
    TargetCapabilities {
        file: Some(format),
        paced_by: Some(PacedBy::Kubelet),
        inexpressible: format.inexpressible(),
        value,
        ..TargetCapabilities::PLAIN
    }
}

/// The registration of this kind.
pub const KIND: Kind = Kind {
    traits: |spec| traits(spec.config_map.as_ref().map_or(Format::Yaml, |spec| spec.format)),
    identities: |spec, namespace, _| spec.config_map.iter().map(|spec| id(namespace, spec)).collect(),
    connect: |Connection { spec, providers, places, reach, .. }| {
        let unset = || Fault::new(Cause::NotFound, "spec.target.configMap is not set");
        let spec = spec.config_map.clone().ok_or_else(unset)?;
        Ok(Arc::new(ConfigMap::new(spec, providers.clone(), places, reach)))
    },
    source: Source::Nodes,
    units_are_nodes: false,
    states_identity: false,
};

/// One key of a `ConfigMap`.
pub struct ConfigMap {
    spec: Spec,
    providers: BTreeMap<String, LimitValues>,
    places: Vec<TargetAddress>,
    reach: Reach,
}

/// The current content of the key.
struct Found {
    object: Option<v1::ConfigMap>,
    /// The limits that the operator wrote; `None` if the content is different now.
    settings: Option<LimitValues>,
}

impl ConfigMap {
    /// The key that pods at these places mount.
    #[must_use]
    pub const fn new(spec: Spec, providers: BTreeMap<String, LimitValues>, places: Vec<TargetAddress>, reach: Reach) -> Self {
        Self { spec, providers, places, reach }
    }

    fn api(&self) -> Api<v1::ConfigMap> {
        Api::namespaced(self.reach.client.clone(), &self.reach.namespace)
    }

    /// One field manager for each key: two policies may write to one `ConfigMap`, and an apply removes the fields that
    /// its manager omits.
    fn manager(&self) -> String {
        format!("{MANAGER}/{}", self.spec.key)
    }

    fn annotation(&self) -> String {
        format!("{SETTINGS_PREFIX}{}", self.spec.key)
    }

    /// The keys of all files: the policy's key with the suffixes of the format.
    fn keys(&self) -> Vec<String> {
        self.spec.format.suffixes().into_iter().map(|suffix| format!("{}{suffix}", self.spec.key)).collect()
    }

    fn path(&self) -> String {
        format!("ConfigMap {}", self.spec.name)
    }

    async fn call<T>(&self, to: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Fault> {
        let path = self.path();
        match tokio::time::timeout(API, call).await {
            Err(_) => Err(Fault::new(Cause::Unreachable, format!("The API server did not answer while {path} was being {to}"))),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(match status.code {
                403 => Fault::new(
                    Cause::Forbidden,
                    format!("{path} cannot be {to}: the operator lacks the permission in this namespace"),
                ),
                409 => Fault::new(
                    Cause::Conflict,
                    format!(
                        "{path}: another field manager owns the key {}; choose another key or remove it from the other manager",
                        self.spec.key
                    ),
                ),
                413 | 422 if status.message.contains("Too long") || status.code == 413 => Fault::new(
                    Cause::Rejected,
                    format!("{path} would be larger than 1 MiB with {}; use a separate ConfigMap for the policy", self.spec.key),
                ),
                400 | 422 => Fault::new(Cause::Rejected, format!("The API server rejected {path} ({})", status.code)),
                429 | 500.. => Fault::new(
                    Cause::Busy,
                    format!("{path} cannot be {to} at the moment: the API server is busy ({})", status.code),
                ),
                code => Fault::new(Cause::Unreachable, format!("The API server returned {code} while {path} was being {to}")),
            }),
            Ok(Err(_)) => Err(Fault::new(Cause::Unreachable, format!("The request for {path} to the API server failed"))),
        }
    }

    async fn find(&self) -> Result<Found, Fault> {
        let object = self.call("read", self.api().get_opt(&self.spec.name)).await?;
        let Some(object) = object else { return Ok(Found { object: None, settings: Some(LimitValues::new()) }) };
        if let Some(obstacle) = ownership::obstacle(&object, &self.keys(), &self.manager()) {
            return Err(Fault::new(Cause::Conflict, format!("{} {obstacle}", self.path())));
        }
        let written = object.metadata.annotations.as_ref().and_then(|all| all.get(&self.annotation()));
        let written = written.map_or_else(|| Some(LimitValues::new()), |text| decoded(text));
        let as_written = |settings: &LimitValues| {
            let files = if settings.is_empty() { BTreeMap::new() } else { self.files(settings) };
            let held = |key: &String| object.data.as_ref().and_then(|data| data.get(key));
            self.keys().iter().all(|key| held(key) == files.get(key))
        };
        Ok(Found { settings: written.filter(as_written), object: Some(object) })
    }

    /// The files, by key.
    fn files(&self, settings: &LimitValues) -> BTreeMap<String, String> {
        self.spec
            .format
            .render(settings, &self.providers)
            .into_iter()
            .map(|(suffix, text)| (format!("{}{suffix}", self.spec.key), text))
            .collect()
    }

    async fn apply(&self, settings: &LimitValues, created: bool) -> Result<v1::ConfigMap, Fault> {
        let mut annotations = BTreeMap::new();
        if created {
            annotations.insert(CREATED.to_owned(), "true".to_owned());
        }
        let mut data = BTreeMap::new();
        if !settings.is_empty() {
            annotations.insert(self.annotation(), encoded(settings));
            data = self.files(settings);
        }
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.spec.name, "annotations": annotations},
            "data": data,
        });
        let api = self.api();
        let params = PatchParams::apply(&self.manager());
        self.call("written", api.patch(&self.spec.name, &params, &Patch::Apply(object))).await
    }

    /// Removes the key. Also deletes the object if the operator created it and it is empty.
    async fn remove(&self, object: &v1::ConfigMap, created: bool) -> Result<(), Fault> {
        let left = self.apply(&LimitValues::new(), created).await?;
        let empty = left.data.as_ref().is_none_or(BTreeMap::is_empty) && left.binary_data.as_ref().is_none_or(BTreeMap::is_empty);
        if !(created && empty) || left.metadata.uid != object.metadata.uid {
            return Ok(());
        }
        let preconditions = Preconditions { uid: left.metadata.uid, resource_version: left.metadata.resource_version };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.api().delete(&self.spec.name, &params).await {
            // The object is gone, or another client has written to it meanwhile.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            answer => self.call("deleted", std::future::ready(answer)).await.map(|_| ()),
        }
    }

    /// The state of a pod, from its own report.
    async fn node(&self, place: &TargetAddress, written: Option<&Written>, stored: &BTreeMap<Limit, Option<Value>>) -> NodeState {
        let page = self.spec.metrics.as_ref();
        NodeState {
            // An empty address, because the unit's address is the API server's.
            metrics: Some(page.map(|page| reported::address(page, &place.address)).unwrap_or_default()),
            serves: reported::serves(&place.address),
            uses: match written {
                Some(written) => self.uses(place, written).await,
                None => None,
            },
            ..NodeState::new(&place.name, Ok(stored.clone()))
        }
    }

    /// Whether the pod's process uses the written limits; `None` if that is unknown.
    async fn uses(&self, place: &TargetAddress, written: &Written) -> Option<bool> {
        let pod = place.pod.as_ref()?;
        let said = match (&self.spec.hash, &self.spec.metrics) {
            (Some(page), _) => {
                self.page(page, &place.address).await.and_then(|body| reported::bare(&body)).map(|hash| vec![hash])
            }
            (None, Some(page)) => self.page(page, &place.address).await.map(|body| reported::in_metrics(&body)),
            (None, None) => None,
        };
        if let Some(hashes) = said.filter(|hashes| !hashes.is_empty()) {
            return Some(hashes.contains(&written.hash));
        }
        let started_for = pod.hash.as_ref() == Some(&written.hash);
        // Both times are in whole seconds and from two clocks, so only a certainly later start counts.
        let started_since = pod.started.zip(written.at).is_some_and(|(started, at)| started.as_second() > at.as_second() + 1);
        (started_for || started_since).then_some(true)
    }

    async fn page(&self, page: &Page, host: &str) -> Option<Vec<u8>> {
        let address = Some(reported::address(page, host)).filter(|address| !address.is_empty())?;
        let answer = self.reach.provider.send(None, Request::get(&address, &page.path, PAGE)).await.ok()?;
        (answer.status == 200).then_some(answer.body)
    }
}

/// The identity of a key in a ConfigMap: one file is one target.
#[must_use]
pub fn id(namespace: &str, spec: &Spec) -> String {
    format!("configmap/{namespace}/{}/{}", spec.name, spec.key)
}

/// Hash of the written files, and when they were written, by the API server's clock.
struct Written {
    hash: String,
    at: Option<Timestamp>,
}

impl Target for ConfigMap {
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>> {
        async move {
            self.find().await?;
            let id = id(&self.reach.namespace, &self.spec);
            let name = format!("{}[{}]", self.spec.name, self.spec.key);
            Ok(vec![Unit { id, name, address: String::new(), role: None }])
        }
        .boxed()
    }

    fn read<'a>(&'a self, _unit: &'a Unit) -> BoxFuture<'a, Result<UnitState, Fault>> {
        async move {
            let Found { object, settings } = self.find().await?;
            let known = settings.clone().unwrap_or_default();
            let text = object.as_ref().and_then(|object| object.data.as_ref()?.get(&self.spec.key));
            let stored = |limit: &Limit| match (known.get(limit), &settings, text) {
                (Some(value), ..) => Stored { value: Some(*value), raw: Some(value.to_string().into()) },
                (None, Some(_), _) | (None, None, None) => Stored::default(),
                // The content was not written by the operator, so the limits are unknown.
                (None, None, Some(_)) => Stored { value: None, raw: Some(Json::Bool(true)) },
            };
            let fields = self.spec.format.fields();
            let sites: BTreeMap<_, _> = fields
                .iter()
                .map(|(limit, _)| (ConfigPath { limit: *limit, place: self.spec.key.clone() }, stored(limit)))
                .collect();
            let values: BTreeMap<_, _> = sites.iter().map(|(site, stored)| (site.limit, stored.value)).collect();
            let at = object.as_ref().and_then(|object| ownership::written_at(object, &self.manager()));
            let written = (!known.is_empty()).then(|| Written { hash: reported::hash(self.files(&known).values()), at });
            let asked: Vec<_> = self.places.iter().map(|place| self.node(place, written.as_ref(), &values)).collect();
            let nodes = stream::iter(asked).buffered(CONCURRENCY).collect().await;
            let created = object.as_ref().is_none_or(|object| {
                object.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(CREATED))
            });
            let native = json!({"settings": encoded(&known), "created": created});
            let hash = written.map(|written| written.hash);
            Ok(UnitState { sites, nodes, changed: at, hash, native: Arc::new(native), ..UnitState::default() })
        }
        .boxed()
    }

    fn write<'a>(&'a self, _unit: &'a Unit, state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let mut settings = state.native["settings"].as_str().and_then(decoded).unwrap_or_default();
            for change in changes {
                let limit = change.site.limit;
                let value = match &change.to {
                    NewValue::Value(value) => Some(*value),
                    NewValue::Raw(raw) => raw.as_ref().and_then(|raw| value(limit, raw.as_str()?)),
                };
                match value {
                    Some(value) => settings.insert(limit, value),
                    None => settings.remove(&limit),
                };
            }
            let created = state.native["created"] == true;
            if !settings.is_empty() {
                return self.apply(&settings, created).await.map(|_| ());
            }
            match self.find().await?.object {
                Some(object) => self.remove(&object, created).await,
                None => Ok(()),
            }
        }
        .boxed()
    }
}

/// The annotation's text: limits by path, with values as users write them.
fn encoded(settings: &LimitValues) -> String {
    let all: BTreeMap<_, _> = settings.iter().map(|(limit, value)| (limit.path(), value.to_string())).collect();
    serde_json::to_string(&all).unwrap_or_default()
}

fn decoded(text: &str) -> Option<LimitValues> {
    let all: BTreeMap<String, String> = serde_json::from_str(text).ok()?;
    all.into_iter().map(|(path, text)| Limit::at(&path).and_then(|limit| Some((limit, value(limit, &text)?)))).collect()
}

fn value(limit: Limit, text: &str) -> Option<Value> {
    if limit.is_count() {
        return text.parse().ok().map(Value::Count);
    }
    text.parse::<GoDuration>().ok().and_then(|time| time.get()).or_else(|| go_duration::parse(text)).map(Value::Duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again() {
        let settings: LimitValues = Limit::ALL
            .into_iter()
            .map(|limit| (limit, if limit.is_count() { Value::Count(0) } else { Value::Duration(Duration::from_millis(90_001)) }))
            .collect();
        assert_eq!(decoded(&encoded(&settings)), Some(settings));
        for bad in ["", "[]", r#"{"server.idle": "1s"}"#, r#"{"server.idleTimeout": "soon"}"#] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
    }
}
