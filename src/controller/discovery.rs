//! Discovery: finds the target of a policy and reads its references: pods, Services, Secrets and `ConfigMaps` of its namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret, Service, ServicePort},
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::ListParams};

use super::{
    Context, PolicyRef, in_time,
    known_pod::KnownPod,
    pods::Interest,
    reachability::{self, Endpoint},
};
use crate::{
    api::{
        adaptive::{Header, Prometheus},
        conditions::Reason,
        lookup::{Lookup, Member, References},
        policy::Target,
        refs::{KeyRef, Scheme, ServiceRef},
        wording::listed,
    },
    decide::report::status::Problem,
    pass::{Error, Failure, PolicyHandle, no_right},
    targets::{Credentials, TargetAddress, endpoint},
};

/// Label of a pod with its role in an application.
const COMPONENT: &str = "app.kubernetes.io/component";

/// Addresses at which a target was found.
pub type Places = Vec<TargetAddress>;

/// Finds the target of a policy, and watches its pods from now on.
pub async fn subscribed(ctx: &Context, reference: &PolicyRef, policy: &PolicyHandle) -> Result<Places, Failure> {
    let spec = policy.spec();
    let interest = match spec.target.selector() {
        Some(selector) => Some(Interest::of(selector)?),
        // An AIStore cluster names the addresses of its nodes, and a Service those of its endpoints: both are looked up among the
        // pods.
        None if spec.names_addresses() => Some(Interest::Addresses),
        None => None,
    };
    ctx.pods.subscribe(reference, interest);
    let places = places(ctx, policy, &spec.target).await?;
    if places.is_empty() {
        let message = format!(
            "No pod or endpoint in namespace {} matches spec.target; create one there, or correct spec.target",
            policy.namespace
        );
        return Err(Problem::no_target(message).into());
    }
    Ok(places)
}

/// Converts a missing right into a problem for the status.
fn permitted<T>(answer: Result<T, Error>, verb: &str, what: &str) -> Result<T, Failure> {
    match answer {
        Err(error) if error.is_forbidden() => Err(no_right(verb, what).into()),
        answer => Ok(answer?),
    }
}

/// Reads the target's references.
pub async fn credentials(ctx: &Context, namespace: &str, target: &Target) -> Result<Credentials, Failure> {
    let references = target.member().map(Member::references).unwrap_or_default();
    referred(ctx, namespace, references).await
}

/// Header fields of a request.
pub type Headers = Vec<(String, String)>;

/// Finds a Prometheus server and reads its references. Returns its address, bearer token and CA, and additional header fields.
pub async fn prometheus(
    ctx: &Context,
    policy: &PolicyHandle,
    spec: &Prometheus,
) -> Result<(String, Credentials, Headers), Failure> {
    let namespace = &policy.namespace;
    let place = match (&spec.endpoint, &spec.service) {
        (Some(endpoint), _) => allowed(ctx, policy, endpoint)?,
        (None, Some(service)) => behind(ctx, policy, service).await?,
        (None, None) => return Err(invalid("adaptive.signal.prometheus has neither an endpoint nor a service; set one of them")),
    };
    let references = References {
        token: spec.token_secret_ref.as_ref(),
        ca_config_map: spec.ca_config_map_ref.as_ref(),
        ca_secret: spec.ca_secret_ref.as_ref(),
    };
    let credentials = referred(ctx, namespace, references).await?;
    let mut headers = Vec::new();
    for Header { name, secret_ref } in spec.headers.iter().flatten() {
        let field = format!("prometheus.headers[{name}].secretRef");
        headers.push((name.clone(), secret_text(ctx, namespace, secret_ref, &field, "header value").await?));
    }
    Ok((place.address, credentials, headers))
}

async fn referred(ctx: &Context, namespace: &str, references: References<'_>) -> Result<Credentials, Failure> {
    let mut credentials = Credentials::default();
    if let Some(reference) = references.token {
        credentials.token = Some(secret_text(ctx, namespace, reference, "tokenSecretRef", "token").await?);
    }
    if let Some(reference) = references.ca_secret {
        credentials.ca = Some(secret_key(ctx, namespace, reference, "caSecretRef").await?);
    }
    if let Some(KeyRef { name, key }) = references.ca_config_map {
        let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), namespace);
        let object = readable(in_time(api.get_opt(name)).await, "ConfigMap", name, "caConfigMapRef")?;
        let text = object.data.and_then(|mut data| data.remove(key));
        credentials.ca = Some(text.ok_or_else(|| no_key("ConfigMap", name, key, "caConfigMapRef"))?.into_bytes());
    }
    Ok(credentials)
}

/// Reads a value of a Secret for an HTTP header: one line of printable ASCII.
async fn secret_text(ctx: &Context, namespace: &str, reference: &KeyRef, field: &str, what: &str) -> Result<String, Failure> {
    let bytes = secret_key(ctx, namespace, reference, field).await?;
    let text = String::from_utf8(bytes).map(|text| text.trim().to_owned()).unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        let KeyRef { name, key } = reference;
        let message = format!("Key {key} of Secret {name} contains no valid {what}; store only the {what} in it");
        return Err(Problem::waiting(Reason::RefKeyNotFound, message).into());
    }
    Ok(text)
}

async fn secret_key(ctx: &Context, namespace: &str, KeyRef { name, key }: &KeyRef, field: &str) -> Result<Vec<u8>, Failure> {
    let api = Api::<Secret>::namespaced(ctx.client.clone(), namespace);
    let object = readable(in_time(api.get_opt(name)).await, "Secret", name, field)?;
    let bytes = object.data.and_then(|mut data| data.remove(key));
    bytes.map(|bytes| bytes.0).ok_or_else(|| no_key("Secret", name, key, field))
}

fn no_key(kind: &str, name: &str, key: &str, field: &str) -> Failure {
    let message = format!("{kind} {name} has no key {key}; add it, or correct {field}.key");
    Problem::waiting(Reason::RefKeyNotFound, message).into()
}

fn readable<T>(answer: Result<Option<T>, Error>, kind: &str, name: &str, field: &str) -> Result<T, Failure> {
    permitted(answer, "get", &format!("{kind} {name}"))?.ok_or_else(|| {
        Problem::waiting(Reason::RefNotFound, format!("{kind} {name} does not exist; create it, or correct {field}")).into()
    })
}

/// Finds the target.
pub async fn places(ctx: &Context, policy: &PolicyHandle, target: &Target) -> Result<Places, Failure> {
    let namespace = &policy.namespace;
    let nowhere = || invalid("spec.target names no pods, Service or endpoints; set a selector, a service or endpoints");
    match target.lookup().ok_or_else(nowhere)? {
        Lookup::Endpoints(endpoints) => endpoints.into_iter().map(|endpoint| allowed(ctx, policy, endpoint)).collect(),
        Lookup::Behind(service) => Ok(vec![behind(ctx, policy, service).await?]),
        Lookup::EachBehind(service) => {
            let (object, slices) = service_and_slices(ctx, namespace, service).await?;
            Ok(endpoints_of(reachable(ctx, namespace, service, addresses(&object, &slices, service)).await?, service))
        }
        Lookup::Pods { selector, scheme, port } => {
            let pods = ctx.pods.list(namespace, selector).await?;
            Ok(pods.iter().filter_map(|pod| place(pod, scheme, port)).collect())
        }
        Lookup::Mounting(selector) => {
            let pods = ctx.pods.list(namespace, selector).await?;
            let pods: Vec<_> = pods.iter().filter(|pod| !pod.is_over).collect();
            one_workload(&pods)?;
            Ok(pods.into_iter().filter_map(|pod| mounting(pod)).collect())
        }
    }
}

fn invalid(message: &str) -> Failure {
    Problem::invalid(Reason::Invalid, message).into()
}

fn allowed(ctx: &Context, policy: &PolicyHandle, endpoint: &str) -> Result<TargetAddress, Failure> {
    match ctx.settings.allow_endpoints.check(endpoint) {
        Ok(address) => {
            // Addresses of an earlier Service with this name do not apply to a listed host.
            if let Some(host) = url::Url::parse(&address).ok().as_ref().and_then(url::Url::host_str) {
                ctx.pool.provider(&policy.path).unname(host);
            }
            Ok(TargetAddress::new(&address, address.split("://").nth(1).unwrap_or(&address), &address))
        }
        Err(error @ endpoint::Error::NotAllowed(_)) => Err(Problem::invalid(Reason::RefNotPermitted, error.to_string()).into()),
        Err(error) => Err(Problem::invalid(Reason::Invalid, error.to_string()).into()),
    }
}

/// Returns an id of a pod's port that is stable while the pod exists.
#[must_use]
pub fn pod_id(uid: &str, port: u16) -> String {
    format!("pod/{uid}:{port}")
}

/// Returns the place of a pod that mounts a file. It may have no address yet, because it may wait for this file.
fn mounting(pod: &KnownPod) -> Option<TargetAddress> {
    let address = pod.ip.map(|ip| ip.to_string()).unwrap_or_default();
    let id = format!("pod/{}", pod.uid.as_ref()?);
    Some(TargetAddress { pod: Some(pod.facts.clone()), ..TargetAddress::new(id, &*pod.name, address) })
}

fn one_workload(pods: &[&Arc<KnownPod>]) -> Result<(), Failure> {
    let workloads: BTreeSet<_> = pods.iter().map(|pod| &pod.workload).collect();
    if workloads.len() <= 1 {
        return Ok(());
    }
    let name = |workload: &&Option<(String, String)>| {
        workload.as_ref().map_or_else(|| "no workload".into(), |(kind, name)| format!("{kind} {name}"))
    };
    let names: Vec<_> = workloads.iter().map(name).collect();
    let message = format!(
        "The selector in spec.target matches pods of several workloads ({}); narrow it down to one workload",
        listed(&names)
    );
    Err(Problem::invalid(Reason::Invalid, message).into())
}

fn place(pod: &KnownPod, scheme: Scheme, port: u16) -> Option<TargetAddress> {
    if pod.is_over {
        return None;
    }
    let address = SocketAddr::new(pod.ip?, port);
    let id = pod_id(pod.uid.as_ref()?, port);
    let role = pod.labels.get(COMPONENT).cloned();
    Some(TargetAddress { role, ..TargetAddress::new(id, &*pod.name, format!("{}://{address}", scheme.name())) })
}

async fn service_and_slices(
    ctx: &Context,
    namespace: &str,
    service: &ServiceRef,
) -> Result<(Service, Vec<EndpointSlice>), Failure> {
    let name = &service.name;
    let api = Api::<Service>::namespaced(ctx.client.clone(), namespace);
    let object = permitted(in_time(api.get_opt(name)).await, "get", &format!("Service {name}"))?;
    let missing = || Problem::no_target(format!("Service {name} does not exist; create it, or correct its name in the policy"));
    let object = object.ok_or_else(missing)?;
    if object.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName")) {
        // The external name could be any address; --allow-endpoints is for those.
        let message = format!("Service {name} is of type ExternalName; use an endpoint that --allow-endpoints lists");
        return Err(Problem::invalid(Reason::RefNotPermitted, message).into());
    }
    if port_of(&object, service).is_none() {
        return Err(
            Problem::no_target(format!("Service {name} has no port {}; correct the port in the policy", service.port)).into()
        );
    }
    let slices = Api::<EndpointSlice>::namespaced(ctx.client.clone(), namespace);
    let its = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let slices = permitted(in_time(slices.list(&its)).await, "list", "EndpointSlices")?;
    Ok((object, slices.items))
}

/// Returns one place for a whole Service under its DNS name, which its certificate contains. DNS is not used.
async fn behind(ctx: &Context, policy: &PolicyHandle, service: &ServiceRef) -> Result<TargetAddress, Failure> {
    let namespace = &policy.namespace;
    let (object, slices) = service_and_slices(ctx, namespace, service).await?;
    let host = format!("{}.{namespace}.svc", service.name);
    // A ClusterIP may lead to any endpoint, so all are checked.
    let found = reachable(ctx, namespace, service, addresses(&object, &slices, service)).await?;
    let cluster_ip = object.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).and_then(|ip| ip.parse().ok());
    let (port, addresses) = if let Some(ip) = cluster_ip {
        (service.port, vec![SocketAddr::new(ip, 0)])
    } else {
        let port = found.first().map_or(service.port, |(_, address)| address.port());
        (port, found.into_iter().map(|(_, address)| SocketAddr::new(address.ip(), 0)).collect())
    };
    if addresses.is_empty() {
        let message = format!("Service {} has no endpoints; check that its pods run and are ready", service.name);
        return Err(Problem::no_target(message).into());
    }
    let aliases = addresses.iter().map(|at| format!("{}://{}", service.scheme.name(), SocketAddr::new(at.ip(), port))).collect();
    ctx.pool.provider(&policy.path).name(&host, addresses);
    let address = format!("{}://{host}:{port}", service.scheme.name());
    Ok(TargetAddress { aliases, ..TargetAddress::new(&address, format!("{}:{port}", service.name), &address) })
}

/// Returns a place for each endpoint of a Service, identified by its pod or its address.
fn endpoints_of(found: Vec<Found>, service: &ServiceRef) -> Vec<TargetAddress> {
    let place = |(pod, address): Found| {
        let at = format!("{}://{address}", service.scheme.name());
        let (id, name) =
            pod.map_or_else(|| (at.clone(), address.to_string()), |(uid, name)| (pod_id(&uid, address.port()), name));
        TargetAddress::new(id, name, at)
    };
    found.into_iter().map(place).collect()
}

/// Endpoint: UID and name of its pod, if it is a pod, and its address with the target port.
type Found = (Option<(String, String)>, SocketAddr);

/// Returns the permitted endpoints. An endpoint that is not permitted is a problem; one whose pod is gone is left out.
async fn reachable(ctx: &Context, namespace: &str, service: &ServiceRef, found: Vec<Found>) -> Result<Vec<Found>, Failure> {
    let (mut kept, mut foreign) = (Vec::new(), Vec::new());
    for (pod, address) in found {
        match permitted(reachability::endpoint(ctx, namespace, pod.as_ref(), address).await, "get", "pods")? {
            Endpoint::Known => kept.push((pod, address)),
            Endpoint::Gone => {}
            Endpoint::Foreign => foreign.push(address.to_string()),
        }
    }
    if foreign.is_empty() {
        return Ok(kept);
    }
    let message = format!(
        "Service {} has endpoints that are not pods of this namespace ({}); ask an administrator to list them in --allow-endpoints",
        service.name,
        listed(&foreign)
    );
    Err(Problem::invalid(Reason::RefNotPermitted, message).into())
}

fn port_of<'a>(object: &'a Service, service: &ServiceRef) -> Option<&'a ServicePort> {
    object.spec.as_ref()?.ports.iter().flatten().find(|port| port.port == i32::from(service.port))
}

fn addresses(object: &Service, slices: &[EndpointSlice], service: &ServiceRef) -> Vec<Found> {
    let name = port_of(object, service).and_then(|port| port.name.clone()).unwrap_or_default();
    let mut found = BTreeMap::new();
    // A dual-stack Service has slices of both families. A pod is one node, at its address of the Service's first family.
    let first = object.spec.as_ref().and_then(|spec| spec.ip_families.as_ref()?.first().cloned());
    let mut slices: Vec<_> = slices.iter().collect();
    slices.sort_by_key(|slice| first.as_ref().is_some_and(|family| *family != slice.address_type));
    let mut pods = BTreeSet::new();
    for slice in slices {
        let mut here = BTreeSet::new();
        let port = slice.ports.iter().flatten().find(|port| port.name.clone().unwrap_or_default() == name);
        let Some(port) = port.and_then(|port| port.port).and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in &slice.endpoints {
            if endpoint.conditions.as_ref().is_some_and(|conditions| conditions.terminating == Some(true)) {
                continue;
            }
            let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
            let pod = pod.and_then(|target| Some((target.uid.clone()?, target.name.clone()?)));
            if pod.as_ref().is_some_and(|(uid, _)| pods.contains(uid)) {
                continue;
            }
            here.extend(pod.as_ref().map(|(uid, _)| uid.clone()));
            for address in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
                found.insert(SocketAddr::new(address, port), pod.clone());
            }
        }
        pods.extend(here);
    }
    found.into_iter().map(|(address, pod)| (pod, address)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, from_value, json};

    use super::*;

    fn service(port: u16) -> ServiceRef {
        ServiceRef { name: "gw".into(), port, scheme: Scheme::Http }
    }

    fn object(ports: &Json) -> Service {
        from_value(json!({"metadata": {"name": "gw"}, "spec": {"ports": ports}})).expect("a Service")
    }

    fn slice(ports: &Json, endpoints: &Json) -> EndpointSlice {
        from_value(json!({"metadata": {"name": "gw-1"}, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
            .expect("a slice")
    }

    #[test]
    fn a_services_endpoints_are_pods_at_the_port_behind_the_services() {
        let object = object(&json!([{"name": "admin", "port": 80}, {"name": "web", "port": 443}]));
        let slices = [slice(
            &json!([{"name": "web", "port": 8443}, {"name": "admin", "port": 2019}]),
            &json!([
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "uid": "u1", "name": "gw-a"}},
                {"addresses": ["10.0.0.2"]},
                {"addresses": ["10.0.0.3"], "conditions": {"terminating": true}},
            ]),
        )];
        let places = endpoints_of(addresses(&object, &slices, &service(80)), &service(80));
        let seen: Vec<_> = places.iter().map(|p| (p.id.as_str(), p.name.as_str(), p.address.as_str())).collect();
        assert_eq!(
            seen,
            [("pod/u1:2019", "gw-a", "http://10.0.0.1:2019"), ("http://10.0.0.2:2019", "10.0.0.2:2019", "http://10.0.0.2:2019")]
        );
    }

    #[test]
    fn a_pod_of_a_dual_stack_service_is_one_node_at_the_services_first_family() {
        let ports = json!([{"name": "admin", "port": 2019}]);
        let slice = |family: &str, address: &str| -> EndpointSlice {
            from_value(json!({"metadata": {"name": family}, "addressType": family, "ports": ports, "endpoints": [
                {"addresses": [address], "targetRef": {"kind": "Pod", "uid": "u1", "name": "gw-a"}}]}))
            .expect("a slice")
        };
        let slices = [slice("IPv4", "10.0.0.1"), slice("IPv6", "fd00::1")];
        for (families, expected) in [(json!(["IPv4", "IPv6"]), "10.0.0.1:2019"), (json!(["IPv6", "IPv4"]), "[fd00::1]:2019")] {
            let object: Service = from_value(json!({"spec": {"ports": [{"name": "admin", "port": 80}], "ipFamilies": families}}))
                .expect("a Service");
            let found = addresses(&object, &slices, &service(80));
            assert_eq!(found.iter().map(|(_, address)| address.to_string()).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn pods_that_are_over_or_going_are_no_nodes() {
        let pod = |phase: &str, extra: Json| -> KnownPod {
            let mut meta = json!({"name": "gw-a", "uid": "u1"});
            meta.as_object_mut().expect("an object").extend(extra.as_object().cloned().expect("an object"));
            KnownPod::of(&from_value(json!({"metadata": meta, "status": {"phase": phase, "podIP": "10.0.0.1"}})).expect("a pod"))
        };
        assert!(place(&pod("Running", json!({})), Scheme::Http, 2019).is_some());
        assert!(place(&pod("Failed", json!({})), Scheme::Http, 2019).is_none());
        assert!(place(&pod("Running", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})), Scheme::Http, 2019).is_none());
    }
}
