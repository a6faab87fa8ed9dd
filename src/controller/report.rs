//! Report: Events, then the status; each only when there is something new.

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
    },
    clock,
    decide::{
        condition::{self, Notice, reason, said, shortened_to_bytes},
        hash::fnv1a,
    },
    metrics::Step,
};

/// Most bytes of an Event's note; the API server takes 1,024.
const NOTE_LENGTH: usize = 900;

/// What is told of a decision. It is the same news as long as no decision has been written down since: a process that died between the
/// telling and the writing left a step that the next one takes instead, with other words and perhaps other news beside it.
const STEPS: [EventReason; 3] = [EventReason::Tightened, EventReason::Relaxed, EventReason::ReachedFloor];

/// Tells what is new. Events go first: a status that was written would make them old news after a crash.
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
        // An apply would leave in place what another client has put there.
        let empty = json!({"metadata": {"uid": subject.uid}, "status": null});
        in_time(api.patch_status(&subject.name, &PatchParams::default(), &Patch::Merge(empty))).await?;
    }
    let body = json!({
        "apiVersion": IdleConnectionPolicy::api_version(&()),
        "kind": IdleConnectionPolicy::kind(&()),
        // Another object of the same name, made since, must not get this one's status.
        "metadata": {"name": subject.name, "uid": subject.uid},
        "status": status,
    });
    match in_time(api.patch_status(&subject.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(body))).await {
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

/// Says that the operator itself has failed on a policy. Nothing that decides takes part in it, for that may be what has failed.
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
    let body = json!({
        "apiVersion": IdleConnectionPolicy::api_version(&()),
        "kind": IdleConnectionPolicy::kind(&()),
        "metadata": {"name": policy.name, "uid": uid},
        "status": status,
    });
    ctx.metrics.reported(namespace, &policy.name, &status);
    in_time(api.patch_status(&policy.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(body))).await?;
    Ok(())
}

/// Publishes an Event under a name that the same news always gets, so that telling it twice leaves one. The name can be foreseen: where an
/// Event of this name says something else, somebody else made it, and the news gets another name.
pub async fn event(ctx: &Context, subject: &Subject, notice: &Notice, seed: &str) -> Result<(), Error> {
    let api = Api::<Event>::namespaced(ctx.client.clone(), &subject.namespace);
    let name = format!("{}.{:016x}", subject.name, fnv1a(&format!("{}/{seed}/{}", subject.uid, notice.reason)));
    let mut event = told(ctx, subject, notice, name);
    match in_time(api.create(&PostParams::default(), &event)).await {
        Err(Error::Kube(kube::Error::Api(status))) if status.is_already_exists() => {
            // Without the right to read Events, or where it is the same news, it counts as told.
            let name = event.metadata.name.clone().unwrap_or_default();
            let Ok(Some(there)) = in_time(api.get_opt(&name)).await else { return Ok(()) };
            if is_same(&there, &event) {
                return Ok(());
            }
            event.metadata.name = Some(format!("{name}.{:08x}", fastrand::u32(..)));
            in_time(api.create(&PostParams::default(), &event)).await?;
        }
        // The namespace is being deleted and takes no more Events.
        Err(Error::Kube(kube::Error::Api(status))) if status.is_forbidden() => return Ok(()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    tracing::info!(reason = %notice.reason, "{}", notice.note);
    Ok(())
}

/// Whether two Events tell the same of the same policy. The notes may differ: a process that died before it wrote the status tells it anew.
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
