//! Publishes Events.

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};

use super::in_time;
use crate::{
    api::{IdleConnectionPolicy, MANAGER},
    clock,
    decide::{
        hash::fnv1a,
        report::condition::{Notice, shortened_to_bytes},
    },
    pass::{Error, PolicyHandle},
};

/// Maximum bytes of an Event's note; the API server accepts 1,024.
const NOTE_LENGTH: usize = 900;

/// Publishes an Event. The same news always has the same name, so that publishing it twice leaves one Event. The name is
/// predictable: if an Event of this name has other content, another client created it, and this Event gets another name.
pub async fn publish(client: &Client, instance: &str, policy: &PolicyHandle, notice: &Notice, seed: &str) -> Result<(), Error> {
    let api = Api::<Event>::namespaced(client.clone(), &policy.namespace);
    let name = format!("{}.{:016x}", policy.name, fnv1a(&format!("{}/{seed}/{}", policy.uid, notice.reason)));
    let mut event = told(instance, policy, notice, name);
    match in_time(api.create(&PostParams::default(), &event)).await {
        Err(error) if error.code() == Some(409) => {
            // If it cannot be read, it counts as the same Event.
            let name = event.metadata.name.clone().unwrap_or_default();
            let Ok(Some(there)) = in_time(api.get_opt(&name)).await else { return Ok(()) };
            if is_same(&there, &event) {
                return Ok(());
            }
            event.metadata.name = Some(format!("{name}.{:08x}", fastrand::u32(..)));
            in_time(api.create(&PostParams::default(), &event)).await?;
        }
        // A namespace that is being deleted accepts no Events.
        Err(error) if error.is_forbidden() => return Ok(()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    tracing::info!(reason = %notice.reason, "{}", notice.note);
    Ok(())
}

/// Reports whether two Events have the same policy and reason. The notes may differ: a process that ended before it wrote the
/// status is followed by one that publishes the Event again.
fn is_same(one: &Event, other: &Event) -> bool {
    let about = |event: &Event| event.regarding.as_ref().map(|policy| (policy.kind.clone(), policy.uid.clone()));
    let kind = |event: &Event| (event.reason.clone(), event.type_.clone(), event.reporting_controller.clone());
    about(one) == about(other) && kind(one) == kind(other)
}

fn told(instance: &str, policy: &PolicyHandle, notice: &Notice, name: String) -> Event {
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(policy.namespace.clone()), ..ObjectMeta::default() },
        event_time: Some(MicroTime(clock::now())),
        reporting_controller: Some(MANAGER.into()),
        reporting_instance: Some(shortened_to_bytes(instance, 128)),
        action: Some("Reconcile".into()),
        reason: Some(notice.reason.to_string()),
        type_: Some(if notice.reason.is_warning() { "Warning" } else { "Normal" }.into()),
        note: Some(shortened_to_bytes(&notice.note, NOTE_LENGTH)),
        regarding: Some(ObjectReference {
            api_version: Some(IdleConnectionPolicy::api_version(&()).into_owned()),
            kind: Some(IdleConnectionPolicy::kind(&()).into_owned()),
            name: Some(policy.name.clone()),
            namespace: Some(policy.namespace.clone()),
            uid: Some(policy.uid.clone()),
            resource_version: policy.object.resource_version(),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}
