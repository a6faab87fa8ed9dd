//! The Leases of all shards and of all replicas, as one list shows them.
//!
//! Each replica renews a Lease that only says that it lives. As in [`super::Election`], a Lease is expired if this process
//! has seen it unchanged for its duration.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};

use super::{LeaseConfig, holder, valid_for};
use crate::{
    clock,
    decide::{
        balance::{self, Move, ShardLease},
        hash::fnv1a,
    },
};

/// Label of the Leases of all shards and replicas. Its value is `--lease-name`.
pub const LABEL: &str = "idleconn.io/leases-of";
/// Annotation of a replica's Lease: number of shards of this replica.
const SHARDS: &str = "idleconn.io/shards";
/// Annotation of a replica's Lease: URL of its API.
const URL: &str = "idleconn.io/api-url";

/// Returns the name of the Lease of a shard.
#[must_use]
pub fn shard_lease(name: &str, index: u32) -> String {
    format!("{name}-{index}")
}

/// The prefix of the names of replicas' Leases.
fn replica_prefix(name: &str) -> String {
    format!("{name}-replica-")
}

/// Returns the Leases of the group.
async fn list(api: &Api<Lease>, terms: &LeaseConfig) -> kube::Result<Vec<Lease>> {
    let ours = ListParams::default().labels(&format!("{LABEL}={}", terms.name));
    Ok(in_time(terms, api.list(&ours)).await?.items)
}

/// Waits for a request, at most for the renew deadline.
async fn in_time<T>(terms: &LeaseConfig, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let answer = tokio::time::timeout(terms.renew_deadline, request).await;
    answer.unwrap_or_else(|_| Err(kube::Error::Service("the API server does not answer".into())))
}

/// Deletes the Leases of all shards and replicas. The replicas must not act any more.
///
/// # Errors
/// If a request to the API server fails.
pub async fn delete_all(client: &Client, terms: &LeaseConfig) -> kube::Result<()> {
    let api = super::leases(client.clone(), terms);
    for lease in list(&api, terms).await? {
        in_time(terms, api.delete(&lease.name_any(), &DeleteParams::default())).await?;
    }
    Ok(())
}

/// The Leases at one time.
#[derive(Clone, Debug)]
pub struct View {
    /// When the list was requested.
    pub began: Instant,
    /// The Lease of each shard, and since when it has been seen like this; `None` if it does not exist.
    pub shards: Vec<Option<(Lease, Instant)>>,
    /// Live replicas with this number of shards, and the URLs of their APIs.
    pub replicas: BTreeMap<String, Option<String>>,
    /// Identity of this replica.
    me: String,
    duration: Duration,
    /// When this process first listed the Leases.
    first: Instant,
}

impl View {
    /// Returns what this replica does about each shard.
    #[must_use]
    pub fn moves(&self) -> Vec<Move> {
        let replicas: BTreeSet<_> = self.replicas.keys().map(String::as_str).collect();
        let shards: Vec<_> = self.shards.iter().map(|lease| self.standing(lease.as_ref())).collect();
        balance::moves(&self.me, &replicas, &shards)
    }

    fn standing<'a>(&self, lease: Option<&'a (Lease, Instant)>) -> ShardLease<'a> {
        let Some((lease, since)) = lease else { return ShardLease::Released(self.first.elapsed()) };
        let Some(holder) = holder(lease).filter(|holder| !holder.is_empty()) else {
            return ShardLease::Released(since.elapsed());
        };
        match since.elapsed().checked_sub(valid_for(lease, self.duration)) {
            None => ShardLease::Held(holder),
            Some(expired) => ShardLease::Expired(holder, expired),
        }
    }

    /// Returns the other replica that holds a shard: the URL of its API, or `None` inside if it has none. Returns `None` if
    /// this view shows no such replica: the Lease is free or expired, or changes hands at this moment.
    #[must_use]
    pub fn other_holder(&self, index: usize) -> Option<Option<&str>> {
        let ShardLease::Held(holder) = self.standing(self.shards.get(index)?.as_ref()) else { return None };
        if holder == self.me { None } else { self.replicas.get(holder).map(Option::as_deref) }
    }

    /// Returns the time until the next Lease of a shard expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        let left = |(lease, since): &(Lease, Instant)| valid_for(lease, self.duration).checked_sub(since.elapsed());
        self.shards.iter().flatten().filter_map(left).min()
    }
}

/// The group, as a member sees it.
pub struct Group {
    api: Api<Lease>,
    terms: LeaseConfig,
    shards: u32,
    url: Option<String>,
    seen: HashMap<String, (Lease, Instant)>,
    own: Option<Lease>,
    first: Option<Instant>,
}

impl Group {
    /// A replica that has not joined yet. `terms` are those of the Lease of all shards; `url` is that of its API.
    #[must_use]
    pub fn new(client: &Client, terms: LeaseConfig, shards: u32, url: Option<String>) -> Self {
        Self { api: super::leases(client.clone(), &terms), terms, shards, url, seen: HashMap::new(), own: None, first: None }
    }

    fn own_name(&self) -> String {
        format!("{}{:016x}", replica_prefix(&self.terms.name), fnv1a(&self.terms.identity))
    }

    /// Creates or renews the Lease by which the others know that this replica lives.
    ///
    /// # Errors
    /// If the API server refuses the request.
    pub async fn renew(&mut self) -> kube::Result<()> {
        let mut lease = self.own.take().unwrap_or_else(|| self.member());
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(clock::now()));
        }
        let name = self.own_name();
        let renewed = async {
            if lease.metadata.resource_version.is_none() {
                match self.api.create(&PostParams::default(), &lease).await {
                    // An earlier attempt was carried out although its answer was lost.
                    Err(kube::Error::Api(status)) if status.is_already_exists() => self.api.get(&name).await,
                    created => created,
                }
            } else {
                self.api.replace(&name, &PostParams::default(), &lease).await
            }
        };
        // If another replica has deleted it meanwhile, the next renewal creates it again.
        self.own = Some(in_time(&self.terms, renewed).await?);
        Ok(())
    }

    fn member(&self) -> Lease {
        let annotations = [(SHARDS, Some(self.shards.to_string())), (URL, self.url.clone())];
        Lease {
            metadata: ObjectMeta {
                name: Some(self.own_name()),
                labels: Some([(LABEL.to_owned(), self.terms.name.clone())].into()),
                annotations: Some(annotations.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.terms.identity.clone()),
                lease_duration_seconds: i32::try_from(self.terms.duration.as_secs()).ok(),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Lists the Leases.
    ///
    /// # Errors
    /// If the API server refuses the request.
    pub async fn look(&mut self) -> kube::Result<View> {
        let began = Instant::now();
        let listed = list(&self.api, &self.terms).await?;
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.seen);
        for lease in listed {
            let known = before.remove(&lease.name_any());
            let known = known.filter(|(known, _)| known.resource_version() == lease.resource_version());
            self.seen.insert(lease.name_any(), known.unwrap_or((lease, now)));
        }
        let shards = (0..self.shards).map(|index| self.seen.get(&shard_lease(&self.terms.name, index)).cloned()).collect();
        let first = *self.first.get_or_insert(began);
        let me = self.terms.identity.clone();
        Ok(View { began, shards, replicas: self.replicas(), me, duration: self.terms.duration, first })
    }

    /// Returns the live replicas with this number of shards.
    fn replicas(&self) -> BTreeMap<String, Option<String>> {
        let live = self.members().filter(|(lease, since)| since.elapsed() < valid_for(lease, self.terms.duration));
        let alike = live.filter(|(lease, _)| lease.annotations().get(SHARDS) == Some(&self.shards.to_string()));
        alike.filter_map(|(lease, _)| Some((holder(lease)?.to_owned(), lease.annotations().get(URL).cloned()))).collect()
    }

    fn members(&self) -> impl Iterator<Item = &(Lease, Instant)> {
        let prefix = replica_prefix(&self.terms.name);
        self.seen.iter().filter(move |(name, _)| name.starts_with(&prefix)).map(|(_, seen)| seen)
    }

    /// Deletes the Leases of replicas that are gone.
    pub async fn sweep(&mut self) {
        let is_gone = |(lease, since): &&(Lease, Instant)| since.elapsed() >= 2 * valid_for(lease, self.terms.duration);
        let gone: Vec<_> = self.members().filter(is_gone).map(|(lease, _)| lease.name_any()).collect();
        for name in gone {
            // If it fails, this or another replica tries again.
            let _ = in_time(&self.terms, self.api.delete(&name, &DeleteParams::default())).await;
        }
    }

    /// Deletes this replica's own Lease, so that the others share its shards at once.
    pub async fn leave(&mut self) {
        if self.own.take().is_some() {
            let name = self.own_name();
            if let Err(error) = in_time(&self.terms, self.api.delete(&name, &DeleteParams::default())).await {
                tracing::debug!(%error, "the replica's Lease could not be deleted; it expires");
            }
        }
    }
}
