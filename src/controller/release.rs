//! Releases policies before the operator is uninstalled.

use std::sync::Arc;

use kube::{Resource as _, ResourceExt as _, api::ListParams};
use tracing::Instrument as _;

use super::{Context, PolicyRef, in_time, path, shell::Shell};
use crate::{
    api::FINALIZER,
    pass::{self, Error},
};

/// Restores and releases all policies (`all`), or only those that are being deleted.
pub async fn release(ctx: &Arc<Context>, all: bool) -> Result<(), Error> {
    let mut left = 0;
    for api in ctx.policy_apis() {
        for stored in in_time(api.list(&ListParams::default())).await? {
            let held = stored.finalizers().iter().any(|f| f == FINALIZER);
            if !held || !(all || stored.meta().deletion_timestamp.is_some()) {
                continue;
            }
            let reference = PolicyRef::from_obj(&stored);
            let span = tracing::error_span!("release", policy = %path(&reference));
            let shell = Shell::new(ctx.clone(), reference, Arc::default());
            if !Box::pin(pass::release(&shell, stored)).instrument(span).await? {
                left += 1;
            }
        }
    }
    if left == 0 { Ok(()) } else { Err(Error::Unreleased(left)) }
}
