//! Several shards: this process stands by for all of them, acts for its fair share, and hands shards over when replicas come
//! and go.
//!
//! Two kinds of Leases decide who acts. The Lease of a shard belongs to one replica. The Lease of `--lease-name` belongs to
//! all replicas with the same number of shards together: they renew it under the same identity, and none writes to a node
//! without it. So replicas with another number of shards, or without shards, wait until the last of them has stopped.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use kube::Client;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    controller::{Operator, Process, actors::Actors},
    decide::{balance::Move, shard::Shard},
    leader::{
        self, Election, Leadership, LeaseConfig,
        group::{Group, View, shard_lease},
    },
};

/// Maximum time in which the passes of a shard end before it is handed over; the rest is done by the next holder.
const HAND_OVER: Duration = Duration::from_secs(30);

/// Why the process may not act any longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Lease was lost.
    #[error("{0}")]
    Lost(#[from] leader::Error),
    /// The controller of a shard ended.
    #[error("the controller of shard {0} exited unexpectedly; exiting so that the pod is restarted")]
    Ended(u32),
}

/// What this replica is to do, from one view of the Leases.
#[derive(Clone)]
struct Orders {
    view: View,
    moves: Vec<Move>,
}

/// The shards of this process.
pub struct Shards {
    process: Process,
    client: Client,
    /// Terms of the Lease of `--lease-name`, with the identity of this process.
    terms: LeaseConfig,
    count: u32,
    /// Holds the Lease of all replicas with this number of shards.
    mode: Election,
    group: Group,
    /// The present actor of each shard.
    pub actors: Actors,
    first: Vec<(Election, Operator)>,
}

impl Shards {
    /// Prepares an actor for each shard. No request is sent yet. `url` is that of this replica's API, if other replicas may
    /// refer to it.
    #[must_use]
    pub fn new(process: Process, client: Client, terms: LeaseConfig, count: u32, url: Option<String>) -> Self {
        let together = LeaseConfig { identity: format!("{count}-shards"), ..terms.clone() };
        let mode = Election::in_common(client.clone(), together);
        let common = mode.leadership();
        let first: Vec<_> = Shard::each(count).map(|shard| actor(&process, &client, &terms, shard, &common)).collect();
        let actors = Actors::new(first.iter().map(|(_, operator)| operator.context.clone()).collect());
        let group = Group::new(&client, terms.clone(), count, url);
        Self { process, client, terms, count, mode, group, actors, first }
    }

    /// Runs until `stop`, and then ends the work and releases all Leases.
    ///
    /// # Errors
    /// If a Lease is lost. Nothing is written any more then.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { process, client, terms, count, mut mode, mut group, actors, first } = self;
        let common = mode.leadership();
        let (orders, _) = watch::channel(None);
        let (process, client, own, common, stop) = (&process, &client, &terms, &common, &stop);
        let acting = Shard::each(count).zip(first).map(|(shard, first)| {
            let prepare = move || actor(process, client, own, shard, common);
            act(shard, first, prepare, &actors, orders.subscribe(), stop)
        });
        let workable = actors.any();
        let guiding = async {
            workable.workable().await;
            join(&mut group, own).await;
            // Others count this replica before it can act, so that the last one to leave knows whether it is the last.
            tokio::select! {
                lost = mode.run() => lost,
                never = guide(&mut group, own, common, &actors, &orders, stop) => match never {},
            }
        };
        let ended = tokio::select! {
            lost = guiding => return Err(lost.into()),
            ended = try_join_all(acting) => ended,
        };
        ended?;
        group.leave().await;
        if group.look().await.is_ok_and(|view| view.replicas.is_empty()) {
            mode.give_up_unless_renewed().await;
        }
        Ok(())
    }
}

/// A candidate for the Lease of a shard, and its actor.
fn actor(process: &Process, client: &Client, terms: &LeaseConfig, shard: Shard, common: &Leadership) -> (Election, Operator) {
    let name = shard_lease(&terms.name, shard.index());
    let election = Election::new(client.clone(), LeaseConfig { name, group: Some(terms.name.clone()), ..terms.clone() });
    let operator = process.actor(shard, election.leadership().within(common));
    (election, operator)
}

/// Creates the Lease by which the others know this replica.
async fn join(group: &mut Group, terms: &LeaseConfig) {
    let mut said = String::new();
    while let Err(error) = group.renew().await {
        warn_once(&mut said, &error);
        tokio::time::sleep(terms.retry_period).await;
    }
}

fn warn_once(said: &mut String, error: &kube::Error) {
    let text = error.to_string();
    if *said != text {
        tracing::warn!(
            error = text,
            "the Leases of the shards cannot be read or written; check that this identity may list, create, update and delete leases in its namespace; retrying"
        );
        *said = text;
    }
}

/// Looks at the Leases, and says what to do about each shard. Never ends.
async fn guide(
    group: &mut Group,
    terms: &LeaseConfig,
    common: &Leadership,
    actors: &Actors,
    orders: &watch::Sender<Option<Orders>>,
    stop: &CancellationToken,
) -> std::convert::Infallible {
    common.begun().await;
    let (mut said, mut renewed) = (String::new(), Instant::now());
    loop {
        let looked = async {
            if renewed.elapsed() >= terms.retry_period {
                renewed = Instant::now();
                group.renew().await?;
            }
            let view = group.look().await?;
            group.sweep().await;
            Ok::<_, kube::Error>(view)
        };
        // Read the Leases twice as often as they are renewed, and when one expires.
        let mut pause = terms.retry_period / 2;
        match looked.await {
            Ok(view) => {
                said.clear();
                pause = view.next_expiry().map_or(pause, |expiry| pause.min(expiry));
                actors.seen(view.clone());
                orders.send_replace(Some(Orders { moves: view.moves(), view }));
            }
            Err(error) => warn_once(&mut said, &error),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {
                group.leave().await;
                return std::future::pending().await;
            }
        }
    }
}

/// Stands by for a shard, acts for it, and hands it over, until `stop`.
async fn act(
    shard: Shard,
    first: (Election, Operator),
    prepare: impl Fn() -> (Election, Operator),
    actors: &Actors,
    mut orders: watch::Receiver<Option<Orders>>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let (mut released, mut next) = (Instant::now(), first);
    loop {
        let (mut election, operator) = next;
        let context = operator.context.clone();
        let end = CancellationToken::new();
        // In a task, so that its work delays no renewal. The task ends with the set.
        let mut controller = JoinSet::new();
        controller.spawn(operator.run(end.clone().cancelled_owned()));
        let acting = async {
            // The former actor answers the API until this one knows the policies. It fails only if the actor is gone.
            let _ = context.policies.wait_until_ready().await;
            actors.set(&context);
            take(shard, &mut election, &mut orders, released).await;
            tokio::select! {
                lost = election.run() => Err(lost),
                () = hand_over(shard, &mut orders) => Ok(()),
            }
        };
        tokio::select! {
            _ = controller.join_next() => return Err(Error::Ended(shard.index())),
            acted = acting => acted?,
            () = stop.cancelled() => {}
        }
        end.cancel();
        if context.is_listed() && election.has_held() {
            tracing::info!(shard = shard.index(), "handing the shard over");
            // Renew the Lease until the work has ended, and release it only then.
            tokio::select! {
                _ = controller.join_next() => {}
                lost = election.run() => return Err(lost.into()),
                () = tokio::time::sleep(HAND_OVER) => {
                    tracing::warn!(shard = shard.index(), "passes of the shard did not end in time and are cut off");
                }
            }
        }
        controller.shutdown().await;
        election.give_up().await;
        context.retire();
        released = Instant::now();
        if stop.is_cancelled() {
            return Ok(());
        }
        next = prepare();
    }
}

/// Waits until this replica is to hold the shard, and takes its Lease. Views from before `released` still show this replica
/// as its holder.
async fn take(shard: Shard, election: &mut Election, orders: &mut watch::Receiver<Option<Orders>>, released: Instant) {
    let mut said = String::new();
    loop {
        let lease = match ordered(orders, shard, Move::Hold, released).await {
            Some(lease) => lease,
            None => std::future::pending().await,
        };
        match election.try_take(lease).await {
            Ok(true) => return,
            Err(error) if said != error.to_string() => {
                tracing::warn!("{error}; retrying");
                said = error.to_string();
            }
            Ok(false) | Err(_) => {}
        }
        let _ = orders.changed().await;
    }
}

/// Waits until this replica is to hand the shard over.
async fn hand_over(shard: Shard, orders: &mut watch::Receiver<Option<Orders>>) {
    let taken = Instant::now();
    if ordered(orders, shard, Move::HandOver, taken).await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Waits for an order from a view that began after `since`. Returns the Lease as seen then; `None` if no order comes any more.
async fn ordered(
    orders: &mut watch::Receiver<Option<Orders>>,
    shard: Shard,
    made: Move,
    since: Instant,
) -> Option<Option<(k8s_openapi::api::coordination::v1::Lease, Instant)>> {
    let index = usize::try_from(shard.index()).ok()?;
    let is_ordered = |orders: &Option<Orders>| {
        orders.as_ref().is_some_and(|orders| orders.view.began > since && orders.moves.get(index) == Some(&made))
    };
    let orders = orders.wait_for(is_ordered).await.ok()?;
    Some(orders.as_ref().and_then(|orders| orders.view.shards.get(index).cloned().flatten()))
}
