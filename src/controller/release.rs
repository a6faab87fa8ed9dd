//! Releases policies before the operator is uninstalled.

use std::sync::Arc;

use kube::{Api, Resource as _, ResourceExt as _, api::ListParams};
use tracing::Instrument as _;

use super::{Context, PolicyRef, in_time, path, shell::Shell};
use crate::{
    api::{FINALIZER, StoredPolicy},
    pass::{self, Error},
};

/// Restores and releases all policies (`all`), or only those that are being deleted.
pub async fn release(ctx: &Arc<Context>, all: bool) -> Result<(), Error> {
    let apis: Vec<Api<StoredPolicy>> = match &ctx.settings.namespaces[..] {
        [] => vec![Api::all(ctx.client.clone())],
        listed => listed.iter().map(|namespace| Api::namespaced(ctx.client.clone(), namespace)).collect(),
    };
    let mut left = 0;
    for api in apis {
        for stored in in_time(api.list(&ListParams::default())).await? {
            let held = stored.finalizers().iter().any(|f| f == FINALIZER);
            if !held || !(all || stored.meta().deletion_timestamp.is_some()) {
                continue;
            }
            let span = tracing::error_span!("release", policy = %path(&PolicyRef::from_obj(&stored)));
            let shell = Shell::new(ctx.clone(), PolicyRef::from_obj(&stored), Arc::default());
            if !Box::pin(pass::release(&shell, stored)).instrument(span).await? {
                left += 1;
            }
        }
    }
    if left == 0 { Ok(()) } else { Err(Error::Unreleased(left)) }
}
