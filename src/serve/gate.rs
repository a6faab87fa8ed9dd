//! Authentication and authorization. The API server decides who the owner of a token is and what the owner may do.

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

/// Time that an answer of the API server stays cached. A revoked right is effective after this time at the latest.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// Timeout of a request to the API server.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of cached answers.
const MOST: usize = 4096;
/// Maximum number of namespaces that are checked for one caller who may not list policies in all namespaces.
const MAX_NAMESPACES: usize = 256;
/// Maximum number of concurrent requests about one caller: half of all.
const EACH: usize = AT_ONCE / 2;
/// Maximum length of a namespace name.
const NAMESPACE_LENGTH: usize = 63;
/// Maximum number of concurrent requests to the API server. It limits how fast anyone who tries tokens here can try them there.
const AT_ONCE: usize = 8;
/// Maximum length of a token. No real token is longer.
const LONGEST: usize = 16 * 1024;

/// Cache of answers.
struct Remembered<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(since, _)| since.elapsed() < GOOD_FOR).map(|(_, answer)| answer.clone())
    }

    fn put(&self, key: K, answer: V) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.retain(|_, (since, _)| since.elapsed() < GOOD_FOR);
        }
        if answers.len() < MOST {
            answers.insert(key, (Instant::now(), answer));
        }
    }
}

/// Owner of a token, as the API server reports it, with the hash of the token.
#[derive(Clone)]
pub struct Caller {
    key: [u8; 32],
    user: UserInfo,
}

impl Caller {
    /// Returns the user name that the API server reports.
    #[must_use]
    pub fn name(&self) -> &str {
        self.user.username.as_deref().unwrap_or_default()
    }
}

/// Action that a caller requests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Deed {
    /// Read one policy and its connections.
    Get,
    /// Read all policies.
    List,
    /// Close connections.
    Destroy,
}

impl Deed {
    const fn verb(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Destroy => "delete",
        }
    }

    const fn subresource(self) -> Option<&'static str> {
        match self {
            Self::Get | Self::List => None,
            Self::Destroy => Some("connections"),
        }
    }

    const fn resource(self) -> &'static str {
        match self {
            Self::Get | Self::List => "idleconnectionpolicies",
            Self::Destroy => "idleconnectionpolicies/connections",
        }
    }
}

/// Maximum number of open streams of one caller.
const MAX_STREAMS: usize = 8;

/// Authorizer of requests, which asks the API server.
pub struct Gate {
    /// `None` allows every request: a demonstration on loopback.
    client: Option<Client>,
    callers: Remembered<[u8; 32], Option<UserInfo>>,
    rights: Remembered<([u8; 32], Deed, Option<String>), bool>,
    turns: Semaphore,
    streams: Mutex<HashMap<Option<String>, Arc<Semaphore>>>,
}

/// Namespaces that a caller may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Everything, including objects without a namespace.
    All,
    /// Objects in these namespaces.
    Of(BTreeSet<String>),
}

impl Sight {
    /// Reports whether the caller may see a namespace; `None` is for objects without a namespace.
    #[must_use]
    pub fn has(&self, namespace: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Of(namespaces) => namespace.is_some_and(|namespace| namespaces.contains(namespace)),
        }
    }
}

impl Gate {
    /// Returns an authorizer that asks the API server through `client`, which may write in a standby too. Without a client, it
    /// allows every request.
    #[must_use]
    pub fn new(client: Option<Client>) -> Self {
        let (callers, rights) = (Remembered(Mutex::default()), Remembered(Mutex::default()));
        Self { client, callers, rights, turns: Semaphore::new(AT_ONCE), streams: Mutex::default() }
    }

    /// Reports whether every request is allowed.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.client.is_none()
    }

    /// Returns a permit for one more stream of the caller; `None` if the caller has no permit left. Callers are distinguished by
    /// name, not by token. Without authentication they cannot be distinguished, and share all permits.
    pub fn stream(&self, caller: Option<&Caller>) -> Option<OwnedSemaphorePermit> {
        let name = caller.map(|caller| caller.name().to_owned());
        let most = |name: &Option<String>| if name.is_some() { MAX_STREAMS } else { super::stream::MOST };
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
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Err(Error::Unavailable(
                "The operator has no right to check callers; bind its ServiceAccount to the ClusterRole system:auth-delegator",
            )),
            Ok(Err(_)) | Err(_) => Err(Error::Unavailable("The API server did not answer the check of the caller")),
        }
    }

    /// Returns the owner of the request's token; `None` if every request is allowed.
    pub async fn caller(&self, headers: &HeaderMap) -> Result<Option<Caller>, Error> {
        let Some(client) = &self.client else { return Ok(None) };
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(Error::Unauthorized)?;
        let (scheme, token) = value.split_once(' ').ok_or(Error::Unauthorized)?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > LONGEST {
            return Err(Error::Unauthorized);
        }
        // The cache stores a hash and not the token.
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

    async fn may(&self, caller: &Caller, deed: Deed, namespace: Option<&str>) -> Result<bool, Error> {
        let Some(client) = &self.client else { return Ok(true) };
        let key = (caller.key, deed, namespace.map(str::to_owned));
        if let Some(known) = self.rights.get(&key) {
            return Ok(known);
        }
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
                    subresource: deed.subresource().map(str::to_owned),
                    verb: Some(deed.verb().to_owned()),
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

    /// Returns an error unless the caller may perform the action in the namespace; `None` is for all namespaces.
    pub async fn check(&self, caller: Option<&Caller>, deed: Deed, namespace: Option<&str>) -> Result<(), Error> {
        let Some(caller) = caller else { return Ok(()) };
        if self.may(caller, deed, None).await? {
            return Ok(());
        }
        // A name that no namespace can have is neither checked nor cached.
        if let Some(named) = namespace.filter(|name| name.len() <= NAMESPACE_LENGTH)
            && self.may(caller, deed, Some(named)).await?
        {
            return Ok(());
        }
        Err(forbidden(caller, deed, namespace))
    }

    /// Returns the namespaces that the caller may see. A caller who may see none gets an error.
    pub async fn sight(&self, caller: Option<&Caller>, namespaces: BTreeSet<String>) -> Result<Sight, Error> {
        let Some(caller) = caller else { return Ok(Sight::All) };
        if self.may(caller, Deed::List, None).await? {
            return Ok(Sight::All);
        }
        if namespaces.len() > MAX_NAMESPACES {
            return Err(Error::Unavailable(
                "More than 256 namespaces have policies; request one policy, or get the right to list policies in all namespaces",
            ));
        }
        // The checks run in small batches, so that requests about other callers are not delayed.
        let mut answers = Vec::new();
        for some in namespaces.into_iter().collect::<Vec<_>>().chunks(EACH) {
            let asked =
                some.iter().map(async |namespace| Ok((namespace.clone(), self.may(caller, Deed::List, Some(namespace)).await?)));
            answers.extend(futures::future::join_all(asked).await.into_iter().collect::<Result<Vec<_>, Error>>()?);
        }
        let seen: BTreeSet<_> = answers.into_iter().filter(|(_, may)| *may).map(|(namespace, _)| namespace).collect();
        if seen.is_empty() { Err(forbidden(caller, Deed::List, None)) } else { Ok(Sight::Of(seen)) }
    }
}

fn forbidden(caller: &Caller, deed: Deed, namespace: Option<&str>) -> Error {
    Error::Forbidden {
        user: caller.name().to_owned(),
        verb: deed.verb(),
        resource: deed.resource(),
        place: namespace
            .map_or_else(|| "in any namespace with a policy".to_owned(), |namespace| format!("in namespace {namespace:?}")),
    }
}
