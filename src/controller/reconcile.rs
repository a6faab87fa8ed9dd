//! One pass of one policy, if the operator may act: begun, contained and ended. [`crate::pass`] does the work.

use std::{sync::Arc, time::Duration};

use kube::runtime::controller::Action;
use tracing::Instrument as _;

use super::{Context, PolicyRef, crd_version::Served, path, scheduler, shell::Shell};
use crate::{
    api::StoredPolicy,
    pass::{self, DUE_SLACK, Error, Next, cache::PolicyCache, logging, report, world::World as _},
};

/// Requeue interval while the CRD is missing or too old: no event reports its upgrade.
const WHILE_OLDER: Duration = Duration::from_secs(1);
/// Requeue interval until the policies have been listed.
const WHILE_UNLISTED: Duration = Duration::from_millis(50);

/// Makes one pass. Every log line of it carries the policy.
pub async fn reconcile(policy: Arc<StoredPolicy>, ctx: Arc<Context>) -> Result<Action, Error> {
    let reference = PolicyRef::from_obj(&*policy);
    // A span of a lower level would be missing from warnings where the log level is warn.
    let span = tracing::error_span!("reconcile", policy = %path(&reference), generation = tracing::field::Empty);
    async {
        let ended = attempt(&ctx, &reference).await;
        match &ended {
            Ok(action) => tracing::debug!(?action, "the pass ended"),
            Err(error) => tracing::debug!(error = logging::chain(error), "the pass failed"),
        }
        ended
    }
    .instrument(span)
    .await
}

/// Makes one pass if the operator may act. A panic affects only this policy.
async fn attempt(ctx: &Arc<Context>, reference: &PolicyRef) -> Result<Action, Error> {
    if reference.namespace.is_none() {
        return Err(Error::Nameless);
    }
    if !ctx.leadership.holds() {
        tracing::debug!("this replica is not the leader");
        // All policies are enqueued when this replica becomes the leader.
        return Ok(Action::await_change());
    }
    if let Served::Missing | Served::Older(_) = &*ctx.served() {
        return Ok(Action::requeue(WHILE_OLDER));
    }
    if !ctx.is_ready() {
        return Ok(Action::requeue(WHILE_UNLISTED));
    }
    let _due = ctx.scheduler.due();
    let known = ctx.begin_to_know(reference);
    let shell = Shell::new(ctx.clone(), reference.clone(), known.running.clone());
    let visited = {
        let mut memory = known.memory.lock().await;
        scheduler::contained(Box::pin(pass::visit(&shell, &mut memory))).await
    };
    ctx.scheduler.end(reference);
    match visited {
        // The policy is being deleted: the pass for the deletion comes next.
        Ok(Err(Error::Cancelled)) => Ok(Action::requeue(DUE_SLACK)),
        Ok(ended) => ended.map(|next| match next {
            Next::After(wait) => Action::requeue(wait),
            Next::Changed => Action::await_change(),
        }),
        Err(scheduler::Panicked) => {
            ctx.metrics.panicked();
            {
                let mut memory = known.memory.lock().await;
                // The state in memory may be inconsistent.
                *memory = PolicyCache { failures: memory.failures, ..PolicyCache::default() };
                shell.end_all();
            }
            if let Ok(Err(error)) = scheduler::contained(Box::pin(report::internal_error(&shell))).await {
                tracing::warn!(error = logging::chain(&error), "cannot write the internal error to the status");
            }
            Err(Error::Panicked)
        }
    }
}
