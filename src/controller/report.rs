//! Reporting: Events, then the status, each only if something is new.

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{Context, Error, PolicyRef, Subject, in_time};
use crate::{
    api::{
        IdleConnectionPolicy, IdleConnectionPolicyStatus, MANAGER, StoredPolicy,
        conditions::{ConditionType, EventReason, Reason},
        policy::DeletionPolicy,
    },
    clock,
    decide::{
        condition::{self, Notice, reason, said, shortened_to_bytes},
        hash::fnv1a,
    },
    metrics::Step,
};

/// Maximum bytes of an Event's note; the API server accepts 1,024.
const NOTE_LENGTH: usize = 900;

/// Events of a decision. Such an Event is the same until a decision is in the status: if a process ended between the Event and
/// the status, the next process decides again, perhaps with another text and with other Events beside it.
const STEPS: [EventReason; 3] = [EventReason::Tightened, EventReason::Relaxed, EventReason::ReachedFloor];

/// Publishes what is new. Events are first: after a crash between the two, a written status would hide that they are missing.
pub async fn report(
    ctx: &Context,
    subject: &Subject,
    status: &IdleConnectionPolicyStatus,
    notices: &[Notice],
) -> Result<(), Error> {
    let _timed = ctx.metrics.time(Step::Report);
    let previous = subject.object.status.clone().unwrap_or_default();
    ctx.metrics.reported(&subject.namespace, &subject.name, status);
    let told = previous.control.as_ref().map_or(0, |control| control.events);
    let decided = previous.history.first().map(|decision| decision.time.0.as_second());
    for (n, notice) in notices.iter().enumerate() {
        let seed = if STEPS.contains(&notice.reason) {
            format!("after {decided:?}")
        } else {
            format!("{told}/{n}/{:?}", previous.observed_generation)
        };
        event(ctx, subject, notice, &seed).await?;
    }
    if *status == previous && !subject.status_lost {
        return Ok(());
    }
    let api = Api::<StoredPolicy>::namespaced(ctx.client.clone(), &subject.namespace);
    if subject.status_lost {
        // An apply would keep fields that another client has set.
        let empty = json!({"metadata": {"uid": subject.uid}, "status": null});
        in_time(api.patch_status(&subject.name, &PatchParams::default(), &Patch::Merge(empty))).await?;
    }
    match apply(ctx, &subject.namespace, &subject.name, &subject.uid, status).await {
        Ok(_) => {
            ctx.metrics.status_written();
            Ok(())
        }
        Err(Error::Kube(kube::Error::Api(refusal))) if refusal.code == 422 => {
            ctx.metrics.status_refused();
            Err(Error::StatusRefused(shortened_to_bytes(&refusal.message, NOTE_LENGTH)))
        }
        Err(error) => Err(error),
    }
}

/// Reports an internal error in the status. It uses no decision code, because that code may be what failed.
pub async fn internal_error(ctx: &Context, policy: &PolicyRef) -> Result<(), Error> {
    let Some(namespace) = &policy.namespace else { return Err(Error::Nameless) };
    let api = Api::<StoredPolicy>::namespaced(ctx.client.clone(), namespace);
    let Some(object) = in_time(api.get_opt(&policy.name)).await? else { return Ok(()) };
    let uid = object.uid();
    let generation = object.meta().generation;
    let mut status = object.read().map_err(Error::Unreadable)?.0.status.unwrap_or_default();
    let message = "The operator failed on this policy with an internal error and retries; report it with the operator's log";
    if reason(&status, ConditionType::Ready) == Some(Reason::InternalError) && status.observed_generation == generation {
        return Ok(());
    }
    status.observed_generation = generation;
    let ready =
        condition::condition(ConditionType::Ready, &said(Reason::InternalError, message), generation, &status, clock::now());
    match status.conditions.iter_mut().find(|condition| condition.type_ == ready.type_) {
        Some(old) => *old = ready,
        None => status.conditions.push(ready),
    }
    ctx.metrics.reported(namespace, &policy.name, &status);
    apply(ctx, namespace, &policy.name, &uid.unwrap_or_default(), &status).await?;
    Ok(())
}

/// Reports that the operator was uninstalled and governs the target no longer. Nothing else that was
/// observed remains in the status: it would not be true for long. With the internal state, a new installation continues at the same
/// openness.
pub async fn released(ctx: &Context, subject: &mut Subject) -> Result<(), Error> {
    let back = match subject.spec().deletion_policy {
        DeletionPolicy::Restore => "the original settings are back",
        DeletionPolicy::Retain => "the nodes keep their limits (spec.deletionPolicy is Retain)",
    };
    let message =
        format!("The operator was uninstalled; {back}, and nothing governs the target. Install it again, or delete the policy");
    let generation = subject.object.metadata.generation;
    let previous = subject.object.status.clone().unwrap_or_default();
    let ready = condition::condition(ConditionType::Ready, &said(Reason::Released, message), generation, &previous, clock::now());
    let status = IdleConnectionPolicyStatus {
        observed_generation: generation,
        conditions: vec![ready],
        control: previous.control,
        ..IdleConnectionPolicyStatus::default()
    };
    // The finalizer is removed from this version of the object.
    subject.object.metadata.resource_version = apply(ctx, &subject.namespace, &subject.name, &subject.uid, &status).await?;
    Ok(())
}

/// Writes a status. Returns the object's new resourceVersion.
async fn apply(
    ctx: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
    status: &IdleConnectionPolicyStatus,
) -> Result<Option<String>, Error> {
    let api = Api::<StoredPolicy>::namespaced(ctx.client.clone(), namespace);
    let body = json!({
        "apiVersion": IdleConnectionPolicy::api_version(&()),
        "kind": IdleConnectionPolicy::kind(&()),
        // The uid protects a newer object of the same name.
        "metadata": {"name": name, "uid": uid},
        "status": status,
    });
    let written = in_time(api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(body))).await?;
    Ok(written.resource_version())
}

/// Publishes an Event. The same news always has the same name, so that publishing it twice leaves one Event. The name is
/// predictable: if an Event of this name has other content, another client created it, and this Event gets another name.
pub async fn event(ctx: &Context, subject: &Subject, notice: &Notice, seed: &str) -> Result<(), Error> {
    let api = Api::<Event>::namespaced(ctx.client.clone(), &subject.namespace);
    let name = format!("{}.{:016x}", subject.name, fnv1a(&format!("{}/{seed}/{}", subject.uid, notice.reason)));
    let mut event = told(ctx, subject, notice, name);
    match in_time(api.create(&PostParams::default(), &event)).await {
        Err(Error::Kube(kube::Error::Api(status))) if status.is_already_exists() => {
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
        Err(Error::Kube(kube::Error::Api(status))) if status.is_forbidden() => return Ok(()),
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

fn told(ctx: &Context, subject: &Subject, notice: &Notice, name: String) -> Event {
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(subject.namespace.clone()), ..ObjectMeta::default() },
        event_time: Some(MicroTime(clock::now())),
        reporting_controller: Some(MANAGER.into()),
        reporting_instance: Some(shortened_to_bytes(&ctx.settings.instance, 128)),
        action: Some("Reconcile".into()),
        reason: Some(notice.reason.to_string()),
        type_: Some(if notice.reason.is_warning() { "Warning" } else { "Normal" }.into()),
        note: Some(shortened_to_bytes(&notice.note, NOTE_LENGTH)),
        regarding: Some(ObjectReference {
            api_version: Some(IdleConnectionPolicy::api_version(&()).into_owned()),
            kind: Some(IdleConnectionPolicy::kind(&()).into_owned()),
            name: Some(subject.name.clone()),
            namespace: Some(subject.namespace.clone()),
            uid: Some(subject.uid.clone()),
            resource_version: subject.object.resource_version(),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}
