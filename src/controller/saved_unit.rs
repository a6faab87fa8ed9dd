//! Finds a saved unit again, so that its original settings can be restored.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};

use super::{Context, discovery, in_time, reachability::addresses_of};
use crate::{
    api::{conditions::Reason, lookup::Lookup, policy::Target},
    decide::{Cause, Fault, originals::Saved, report::condition::shortened},
    pass::{Error, Failure, PolicyHandle},
    targets::{self, TargetAddress},
};

/// Returns the current location of a saved unit from the API server or `--allow-endpoints`; `None` if the unit is gone. The saved
/// address is not used: anyone who may write `ControllerRevisions` could have put any address there.
pub async fn place(
    ctx: &Context,
    policy: &PolicyHandle,
    id: &str,
    saved: &Saved,
    spec: &Target,
) -> Result<Option<Vec<TargetAddress>>, Fault> {
    if matches!(spec.lookup(), Some(Lookup::Mounting(_))) {
        return Ok(Some(vec![TargetAddress::new(id, &saved.name, "")]));
    }
    if let Some((uid, port)) = id.strip_prefix("pod/").and_then(|id| id.rsplit_once(':')) {
        let pods = Api::<Pod>::namespaced(ctx.client.clone(), &policy.namespace);
        let unknown = |error: Error| Fault::new(Cause::Unreachable, shortened(&error.to_string(), 200));
        // A pod that was deleted took its settings with it.
        let pod = in_time(pods.get_opt(&saved.name)).await.map_err(unknown)?;
        let Some(pod) = pod.filter(|pod| pod.uid().as_deref() == Some(uid)) else { return Ok(None) };
        return match (addresses_of(&pod).first(), port.parse()) {
            (Some(ip), Ok(port)) => {
                let address = format!("{}://{}", spec.scheme().name(), SocketAddr::new(*ip, port));
                Ok(Some(vec![TargetAddress::new(id, &saved.name, address)]))
            }
            _ => Err(Fault::new(Cause::Unreachable, format!("Pod {} has no address", saved.name))),
        };
    }
    let places = match discovery::places(ctx, policy, spec).await {
        Ok(places) => places,
        Err(Failure::Problem(problem)) => {
            let cause = if problem.reason == Reason::RefNotPermitted { Cause::NotPermitted } else { Cause::Unreachable };
            return Err(Fault::new(cause, problem.message));
        }
        Err(Failure::Error(error)) => return Err(Fault::new(Cause::Unreachable, shortened(&error.to_string(), 200))),
    };
    if targets::kind(spec.type_).states_identity {
        // The cluster reports its own identity, which is checked later.
        return Ok(Some(places));
    }
    let at: Vec<_> = places.into_iter().filter(|place| place.id == id).collect();
    if at.is_empty() {
        let message = format!("{} is no longer at an address of the saved target", saved.name);
        return Err(Fault::new(Cause::NotPermitted, message));
    }
    Ok(Some(at))
}
