//! Authentication and authorization of callers. The API server decides both.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, Resource as _, api::PostParams};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::answer::Error;
use crate::api::IdleConnectionPolicy;

/// How long a decision of the API server is cached: a revoked right ends after this time.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// Timeout for the API server.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Most cached decisions of one kind.
const MAX_CACHED: usize = 4096;
/// Most namespaces that are checked for one caller who may not list policies in all of them.
const MAX_NAMESPACES: usize = 256;
/// Most reviews for one caller at the same time: half of all.
const CONCURRENCY_PER_CALLER: usize = CONCURRENCY / 2;
/// Longest possible name of a namespace.
const NAMESPACE_LENGTH: usize = 63;
/// Most reviews at the same time, so that guessing tokens here cannot flood the API server.
const CONCURRENCY: usize = 8;
/// Most bytes of a token; every real token is shorter.
const MAX_TOKEN: usize = 16 * 1024;

/// Cached decisions.
struct Remembered<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(since, _)| since.elapsed() < GOOD_FOR).map(|(_, answer)| answer.clone())
    }

    fn put(&self, key: K, answer: V) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_CACHED {
            answers.retain(|_, (since, _)| since.elapsed() < GOOD_FOR);
        }
        if answers.len() < MAX_CACHED {
            answers.insert(key, (Instant::now(), answer));
        }
    }
}

/// An authenticated caller, identified by the hash of the token.
#[derive(Clone)]
pub struct Caller {
    key: [u8; 32],
    user: UserInfo,
}

impl Caller {
    /// The user name from the API server.
    #[must_use]
    pub fn name(&self) -> &str {
        self.user.username.as_deref().unwrap_or_default()
    }
}

/// An action of a caller.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verb {
    /// Read one policy and its connections.
    Get,
    /// Read all policies.
    List,
    /// Close connections.
    Destroy,
}

impl Verb {
    /// Returns the verb, and the subresource if there is one.
    const fn on(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Get => ("get", None),
            Self::List => ("list", None),
            Self::Destroy => ("delete", Some("connections")),
        }
    }
}

/// Most open streams of all callers.
pub const MAX_STREAMS: usize = 64;
/// Most open streams of one caller.
const MAX_STREAMS_PER_CALLER: usize = 8;

/// Authorizes callers through the API server, or allows everything in a demonstration.
pub struct Authorizer {
    /// `None` allows everything: a demonstration on loopback.
    client: Option<Client>,
    callers: Remembered<[u8; 32], Option<UserInfo>>,
    rights: Remembered<([u8; 32], Verb, Option<String>), bool>,
    turns: Semaphore,
    streams: Mutex<HashMap<Option<String>, Arc<Semaphore>>>,
}

/// The namespaces whose objects a caller may see; `None` means everything, including objects without a namespace.
pub struct Sight(Option<BTreeSet<String>>);

impl Sight {
    /// Whether a namespace is visible; `None` stands for objects without a namespace.
    #[must_use]
    pub fn has(&self, namespace: Option<&str>) -> bool {
        self.0.as_ref().is_none_or(|seen| namespace.is_some_and(|namespace| seen.contains(namespace)))
    }
}

impl Authorizer {
    /// Uses a client that may create reviews even on a standby; `None` allows everything.
    #[must_use]
    pub fn new(client: Option<Client>) -> Self {
        let (callers, rights) = (Remembered(Mutex::default()), Remembered(Mutex::default()));
        Self { client, callers, rights, turns: Semaphore::new(CONCURRENCY), streams: Mutex::default() }
    }

    /// Whether every caller may do everything.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.client.is_none()
    }

    /// A permit for one more stream of this caller; `None` if the caller has the maximum. Callers are identified by
    /// user name, not by token. Without authentication, all callers share the maximum of the server.
    pub fn stream(&self, caller: Option<&Caller>) -> Option<OwnedSemaphorePermit> {
        let name = caller.map(|caller| caller.name().to_owned());
        let most = |name: &Option<String>| if name.is_some() { MAX_STREAMS_PER_CALLER } else { MAX_STREAMS };
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|name, places| places.available_permits() < most(name));
        let places = streams.entry(name.clone()).or_insert_with(|| Arc::new(Semaphore::new(most(&name))));
        places.clone().try_acquire_owned().ok()
    }

    async fn ask<T>(&self, question: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        let asked = async {
            let _turn = self.turns.acquire().await;
            question.await
        };
        match tokio::time::timeout(REVIEW_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Err(Error::Unavailable(
                "The operator has no right to check callers; bind its ServiceAccount to the ClusterRole system:auth-delegator",
            )),
            Ok(Err(_)) | Err(_) => Err(Error::Unavailable("The API server did not answer the check of the caller")),
        }
    }

    /// The authenticated caller of a request; `None` if everything is allowed.
    pub async fn caller(&self, headers: &HeaderMap) -> Result<Option<Caller>, Error> {
        let Some(client) = &self.client else { return Ok(None) };
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(Error::Unauthorized)?;
        let (scheme, token) = value.split_once(' ').ok_or(Error::Unauthorized)?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > MAX_TOKEN {
            return Err(Error::Unauthorized);
        }
        // Cache the hash, never the token.
        let mut key = [0; 32];
        key.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
        let user = if let Some(user) = self.callers.get(&key) {
            user
        } else {
            let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
            let api = Api::<TokenReview>::all(client.clone());
            let (review, params) = (TokenReview { spec, ..TokenReview::default() }, PostParams::default());
            let status = self.ask(api.create(&params, &review)).await?.status.unwrap_or_default();
            let user = status.user.filter(|_| status.authenticated == Some(true));
            self.callers.put(key, user.clone());
            user
        };
        Ok(Some(Caller { key, user: user.ok_or(Error::Unauthorized)? }))
    }

    async fn may(&self, caller: &Caller, deed: Verb, namespace: Option<&str>) -> Result<bool, Error> {
        let Some(client) = &self.client else { return Ok(true) };
        let key = (caller.key, deed, namespace.map(str::to_owned));
        if let Some(known) = self.rights.get(&key) {
            return Ok(known);
        }
        let (verb, subresource) = deed.on();
        let UserInfo { extra, groups, uid, username } = caller.user.clone();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: username,
                uid,
                groups,
                extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(IdleConnectionPolicy::group(&()).into_owned()),
                    resource: Some(IdleConnectionPolicy::plural(&()).into_owned()),
                    subresource: subresource.map(str::to_owned),
                    verb: Some(verb.to_owned()),
                    namespace: namespace.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(client.clone());
        let allowed = self.ask(api.create(&PostParams::default(), &review)).await?.status.is_some_and(|status| status.allowed);
        self.rights.put(key, allowed);
        Ok(allowed)
    }

    /// Fails unless the caller may do this in this namespace; `None` stands for all namespaces.
    pub async fn check(&self, caller: Option<&Caller>, deed: Verb, namespace: Option<&str>) -> Result<(), Error> {
        let Some(caller) = caller else { return Ok(()) };
        if self.may(caller, deed, None).await? {
            return Ok(());
        }
        // Neither review nor cache a text that cannot be the name of a namespace.
        if let Some(named) = namespace.filter(|name| name.len() <= NAMESPACE_LENGTH)
            && self.may(caller, deed, Some(named)).await?
        {
            return Ok(());
        }
        Err(forbidden(caller, deed, namespace))
    }

    /// Those of these namespaces that the caller may list. Fails if there are none.
    pub async fn sight(&self, caller: Option<&Caller>, namespaces: BTreeSet<String>) -> Result<Sight, Error> {
        let Some(caller) = caller else { return Ok(Sight(None)) };
        if self.may(caller, Verb::List, None).await? {
            return Ok(Sight(None));
        }
        if namespaces.len() > MAX_NAMESPACES {
            return Err(Error::Unavailable(
                "More than 256 namespaces have policies; request one policy, or get the right to list policies in all namespaces",
            ));
        }
        // Send few reviews at a time, so that other callers get their turn.
        let mut answers = Vec::new();
        for some in namespaces.into_iter().collect::<Vec<_>>().chunks(CONCURRENCY_PER_CALLER) {
            let asked =
                some.iter().map(async |namespace| Ok((namespace.clone(), self.may(caller, Verb::List, Some(namespace)).await?)));
            answers.extend(futures::future::join_all(asked).await.into_iter().collect::<Result<Vec<_>, Error>>()?);
        }
        let seen: BTreeSet<_> = answers.into_iter().filter(|(_, may)| *may).map(|(namespace, _)| namespace).collect();
        if seen.is_empty() { Err(forbidden(caller, Verb::List, None)) } else { Ok(Sight(Some(seen))) }
    }
}

fn forbidden(caller: &Caller, deed: Verb, namespace: Option<&str>) -> Error {
    let (verb, subresource) = deed.on();
    Error::Forbidden {
        user: caller.name().to_owned(),
        verb,
        resource: subresource.map_or("idleconnectionpolicies", |_| "idleconnectionpolicies/connections"),
        place: namespace
            .map_or_else(|| "in any namespace with a policy".to_owned(), |namespace| format!("in namespace {namespace:?}")),
    }
}
