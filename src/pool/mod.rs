//! All requests to nodes, to Prometheus and to the API server, except those of [`crate::probe`]. They are bounded and
//! counted, and use no proxies and no redirects.
//!
//! This module has the providers and the bounds of their connections, connecting, one exchange over a connection, and a
//! response while it arrives. It also has the queue, the idle connections, the counters, name resolution for Services,
//! the limit on body sizes, and the error texts. It knows no target. The names of the settings
//! and of the counters are agentkeepalive's.

mod agent;
mod answer;
mod connect;
mod exchange;
mod framing;
#[cfg(test)]
mod like_hyper;
mod settings;
mod statistics;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent::{Agent, ConnectionKey, Permit};
pub use answer::Following;
use answer::PendingResponse;
use bytes::Bytes;
use connect::Names;
pub(crate) use connect::tls as client_tls;
use exchange::{Failure, Message, Sink, begin};
use http::{
    HeaderMap, Method,
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue},
};
use rustls::{ClientConfig, pki_types::ServerName};
pub use settings::PoolSettings;
pub use statistics::{Closed, Protocol, Statistics, Tally};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use url::{Position, Url};

use crate::{
    budget::{Budget, Reservation, Tenant},
    leader::Leadership,
};

/// Most bytes that are read of a response, unless the request allows fewer.
pub const MAX_BODY: usize = MEMORY / 4;
/// Bytes that all responses together may hold, in addition to the part that [`FLOOR`] guarantees.
const MEMORY: usize = 32 * 1024 * 1024;
/// Bytes of responses that each namespace may hold in any case, even if the others hold all the rest.
const FLOOR: usize = 512 * 1024;
/// Bytes that are reserved for a response before its size is known.
const FIRST_RESERVATION: usize = 32 * 1024;
/// Longest time to open a connection to a node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Most idle connections in total, if the process may open enough files.
const MAX_IDLE: usize = 8192;
/// How often the pool closes idle connections that expired or that the other side closed.
const SWEEP: Duration = Duration::from_secs(60);
/// Most certificate authorities that are cached; the least recently used one is dropped.
const MAX_AUTHORITIES: usize = 1024;

/// Why a request has no response.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// The peer does not listen, or is unreachable.
    #[error("cannot connect to {0}: connection refused or unreachable")]
    Connect(String),
    /// The peer's certificate is not trusted.
    #[error("The certificate of {0} is not signed by a trusted CA")]
    Certificate(String),
    /// The response did not arrive in time.
    #[error("{0} did not answer within {1:?}")]
    TimedOut(String, Duration),
    /// All connections stayed in use until the timeout.
    #[error("No request was sent to {0}: all of its {2} connections were in use for {1:?}")]
    NoSocket(String, Duration, u32),
    /// The connection broke, or the peer does not speak HTTP.
    #[error("{0} closed the connection early or does not speak HTTP")]
    Broken(String),
    /// The response is larger than the request allows.
    #[error("The response of {0} is larger than {size}", size = size(*.1))]
    TooLarge(String, usize),
    /// Other responses of the tenant use all of its memory.
    #[error("No request was sent to {0}: other responses in this namespace used all of their {size} of memory for {1:?}", size = size(MAX_BODY))]
    NoMemory(String, Duration),
    /// Another replica is the leader.
    #[error("No change was sent to {0}: this replica does not hold the lease")]
    NotLeading(String),
    /// The CA is not PEM.
    #[error("The CA contains no PEM certificate")]
    Ca,
    /// The system's CA certificates cannot be loaded.
    #[error("The system's CA certificates cannot be loaded ({0}); set a CA for the target, or install ca-certificates")]
    SystemCa(String),
    /// The address or a header cannot be used in a request.
    #[error("{0} is not a valid address")]
    Address(String),
}

/// A request to a node. It has no `Debug`, because its header fields hold tokens.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// `scheme://host:port`.
    pub address: String,
    /// Path and query.
    pub path: String,
    /// Header fields.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// JSON to send.
    pub body: Option<Vec<u8>>,
    /// Timeout for the whole request, the body included.
    pub timeout: Duration,
    /// Most bytes of the response's body: at most [`MAX_BODY`] if the body is kept, any number if it is only read.
    pub most: usize,
    /// The reservation that already covers a large request body. The request then does not wait for memory, because a
    /// holder of memory must not wait for more.
    pub held: Option<Arc<Reservation>>,
}

/// A number of bytes in MiB or KiB.
fn size(bytes: usize) -> String {
    if bytes >= 1024 * 1024 { format!("{} MiB", bytes / 1024 / 1024) } else { format!("{} KiB", bytes / 1024) }
}

impl Request {
    /// A GET request without header fields.
    #[must_use]
    pub fn get(address: &str, path: &str, timeout: Duration) -> Self {
        let (address, path) = (address.to_owned(), path.to_owned());
        Self { method: Method::GET, address, path, headers: Vec::new(), body: None, timeout, most: MAX_BODY, held: None }
    }
}

/// A response. Its memory is accounted for until it is dropped: keep it as long as anything borrows from the body.
#[derive(Debug)]
pub struct Response {
    /// Header fields.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body, at most as large as the request allows.
    pub body: Vec<u8>,
    /// The reservation that covers the body.
    held: Option<Arc<Reservation>>,
}

impl Response {
    /// The reservation that covers the body, for a value that is made from the body.
    #[must_use]
    pub fn into_memory(self) -> Option<Arc<Reservation>> {
        self.held
    }

    /// A header field as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// TLS settings by the SHA-256 of the CA in PEM, and when they were last used. Each has its own number, so that a connection made
/// with one is not used with another.
type Authorities = HashMap<Option<[u8; 32]>, (TlsIdentity, Instant)>;

/// TLS settings: the trusted CAs and the client's identity. A connection made with one `Trust` is not used with
/// another.
#[derive(Clone)]
pub struct TlsIdentity {
    number: u64,
    config: Arc<ClientConfig>,
    /// The name in the certificate, if it differs from the one in the address.
    name: Option<ServerName<'static>>,
}

/// Timeouts for a response whose body is read as it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Timeout for a new connection.
    pub connecting: Duration,
    /// Timeout for the head, including the wait for a connection and the time to connect.
    pub head: Duration,
    /// Longest time between two pieces of the body.
    pub silence: Duration,
}

/// The pool: all providers, and what they share.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Whether this process is the leader; `None` if there is no election.
    leadership: Option<Leadership>,
}

/// The state of one provider.
struct Member {
    /// One agent for each protocol, in the order of [`Protocol::ALL`].
    agents: [Arc<Agent>; 2],
    /// Addresses of the names in its URLs, from the API server. Other names are resolved by DNS.
    names: Names,
    /// Memory of the provider's tenant.
    memory: Arc<Tenant>,
    /// Number of requests in progress that change something.
    open_writes: watch::Sender<usize>,
    /// Peers behind its addresses that did not answer the last request.
    silent: Mutex<BTreeSet<String>>,
}

struct Shared {
    memory: Budget,
    authorities: Mutex<(u64, Authorities)>,
    /// Requests that continue after their caller stopped waiting. Each ends at its own timeout, and all of them end
    /// with the pool.
    background: Mutex<JoinSet<()>>,
    settings: PoolSettings,
    providers: RwLock<BTreeMap<Arc<str>, Arc<Member>>>,
    room: Arc<Semaphore>,
    epoch: Instant,
    swept: AtomicBool,
}

impl Default for Shared {
    fn default() -> Self {
        // The other half of the files stays free for everything else.
        let most = open_files().map_or(256, |files| files / 2).min(MAX_IDLE);
        Self {
            memory: Budget::new(MEMORY, FLOOR),
            authorities: Mutex::default(),
            background: Mutex::default(),
            settings: PoolSettings::default(),
            providers: RwLock::default(),
            room: Arc::new(Semaphore::new(most)),
            epoch: Instant::now(),
            swept: AtomicBool::new(false),
        }
    }
}

impl Pool {
    /// An empty pool. Its providers start with these settings.
    #[must_use]
    pub fn new(settings: PoolSettings) -> Self {
        Self { shared: Arc::new(Shared { settings: settings.checked(), ..Shared::default() }), leadership: None }
    }

    /// The same pool for callers that may change something only while this process is the leader.
    #[must_use]
    pub fn led(&self, leadership: Leadership) -> Self {
        Self { shared: self.shared.clone(), leadership: Some(leadership) }
    }

    /// The provider of this name. It is created if it does not exist.
    #[must_use]
    pub fn provider(&self, name: &str) -> Provider {
        let known = self.shared.providers.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let member = known.unwrap_or_else(|| {
            let mut providers = self.shared.providers.write().unwrap_or_else(PoisonError::into_inner);
            let name: Arc<str> = name.into();
            providers.entry(name.clone()).or_insert_with(|| self.shared.member(&name)).clone()
        });
        Provider { pool: Arc::downgrade(&self.shared), leadership: self.leadership.clone(), member }
    }

    /// Removes a provider. Its idle connections close now, those in use close when their requests end.
    pub fn forget(&self, name: &str) {
        let gone = self.shared.providers.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        for agent in gone.iter().flat_map(|member| &member.agents) {
            agent.end();
        }
    }

    /// The statistics of each provider and protocol with at least one request, sorted by name. They are copied under a
    /// short lock.
    #[must_use]
    pub fn statistics(&self) -> Vec<Statistics> {
        let providers = self.shared.providers.read().unwrap_or_else(PoisonError::into_inner);
        providers.values().flat_map(|member| &member.agents).filter_map(|agent| agent.statistics()).collect()
    }

    /// Closes a provider's connections, of one protocol or of both. Idle ones close now, those in use close when their
    /// requests end.
    ///
    /// Returns the number of idle connections and of those in use; `None` if the provider had no request.
    #[must_use]
    pub fn destroy(&self, name: &str, protocol: Option<Protocol>) -> Option<(u64, u64)> {
        let member = self.shared.providers.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()?;
        let asked = Protocol::ALL.into_iter().zip(&member.agents);
        let mut asked =
            asked.filter(|(spoken, agent)| protocol.is_none_or(|p| p == *spoken) && agent.statistics().is_some()).peekable();
        asked.peek()?;
        Some(asked.map(|(_, agent)| agent.destroy()).fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1)))
    }

    /// Registers TLS settings, and the name in the server's certificate if it differs from the address. Call this once
    /// for each identity: every call returns another `Trust`, which shares no connections.
    #[must_use]
    pub fn trust(&self, config: ClientConfig, name: Option<ServerName<'static>>) -> TlsIdentity {
        let mut authorities = self.shared.authorities.lock().unwrap_or_else(PoisonError::into_inner);
        authorities.0 += 1;
        TlsIdentity { number: authorities.0, config: Arc::new(connect::spoken(config)), name }
    }

    fn tls(&self, ca: Option<&[u8]>) -> Result<TlsIdentity, Error> {
        let key = ca.map(|pem| {
            let mut key = [0; 32];
            key.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, pem).as_ref());
            key
        });
        let known = |authorities: &mut (u64, Authorities)| {
            let (trust, used) = authorities.1.get_mut(&key)?;
            *used = Instant::now();
            Some(trust.clone())
        };
        if let Some(trust) = known(&mut self.shared.authorities.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(trust);
        }
        // Parse the certificates without the lock, so that no other request waits.
        let config = Arc::new(connect::tls(ca).map_err(|error| match ca {
            Some(_) => Error::Ca,
            None => Error::SystemCa(error.to_string()),
        })?);
        let mut authorities = self.shared.authorities.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trust) = known(&mut authorities) {
            return Ok(trust);
        }
        let (last, all) = &mut *authorities;
        if all.len() >= MAX_AUTHORITIES
            && let Some(oldest) = all.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key)
        {
            all.remove(&oldest);
        }
        *last += 1;
        let trust = TlsIdentity { number: *last, config, name: None };
        all.insert(key, (trust.clone(), Instant::now()));
        Ok(trust)
    }
}

impl Shared {
    fn member(&self, name: &Arc<str>) -> Arc<Member> {
        let agent = |protocol| Agent::new(name.clone(), protocol, self.epoch, self.settings, self.room.clone());
        // A policy's provider is called `namespace/name`: its namespace is the tenant.
        let tenant = name.split_once('/').map_or(&**name, |(namespace, _)| namespace);
        Arc::new(Member {
            agents: Protocol::ALL.map(agent),
            names: Names::default(),
            memory: self.memory.tenant(tenant),
            open_writes: watch::Sender::default(),
            silent: Mutex::default(),
        })
    }

    /// Starts the sweep at the first idle connection. It runs each minute until the pool is gone.
    fn kept(self: Arc<Self>) {
        if !self.swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(&self)));
        }
    }
}

async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else { return };
        let providers: Vec<_> = shared.providers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for agent in providers.iter().flat_map(|member| &member.agents) {
            agent.sweep();
        }
    }
}

/// One peer or group of peers. Its requests use its own connections and count in its own statistics.
#[derive(Clone)]
pub struct Provider {
    pool: Weak<Shared>,
    leadership: Option<Leadership>,
    member: Arc<Member>,
}

impl Provider {
    /// Changes the settings of both protocols. Requests in progress continue.
    pub fn configure(&self, settings: PoolSettings) {
        for agent in &self.member.agents {
            agent.configure(settings.checked());
        }
    }

    /// Sets the addresses of a host, so that its name can be used in a URL and checked in its certificate. Other
    /// providers do not see them, because another policy may use the same name for another host.
    pub fn name(&self, host: &str, addresses: Vec<SocketAddr>) {
        self.member.names.insert(host, addresses);
    }

    /// Resolves a host by DNS again.
    pub fn unname(&self, host: &str) {
        self.member.names.remove(host);
    }

    /// Records whether a peer behind an address, such as a node of a cluster, did not answer.
    pub fn note_silent(&self, who: &str, is_silent: bool) {
        let mut silent = self.member.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if is_silent {
            silent.insert(who.to_owned());
        } else {
            silent.remove(who);
        }
    }

    /// Whether a peer did not answer the last request.
    #[must_use]
    pub fn is_silent(&self, who: &str) -> bool {
        self.member.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(who)
    }

    /// Keeps only the recorded peers that this accepts.
    pub fn keep_silent(&self, there: impl Fn(&str) -> bool) {
        self.member.silent.lock().unwrap_or_else(PoisonError::into_inner).retain(|who| there(who));
    }

    /// Number of idle connections.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.member.agents.iter().filter_map(|agent| agent.statistics()).map(|statistics| statistics.tally.idle).sum()
    }

    /// Sends a request and reads the whole response.
    ///
    /// An idle connection is used if there is one. If the server had closed it, the request is retried once, on a new
    /// connection. It is retried only if its method is safe or if nothing was sent.
    ///
    /// A request that changes something continues even if the caller stops waiting; see [`Provider::writes_ended`].
    pub async fn send(&self, ca: Option<&[u8]>, request: Request) -> Result<Response, Error> {
        if request.method.is_safe() {
            self.read_whole(ca, request).await
        } else {
            let timeout = request.timeout;
            self.send_patiently(ca.map(<[u8]>::to_vec), request, timeout).await
        }
    }

    /// Waits until every request of this provider that changes something has ended, also those without a waiting
    /// caller.
    pub async fn writes_ended(&self) {
        // The wait cannot fail: the provider itself owns the sender.
        let _ = self.member.open_writes.subscribe().wait_for(|open| *open == 0).await;
    }

    async fn read_whole(&self, ca: Option<&[u8]>, request: Request) -> Result<Response, Error> {
        let (began, timeout, most) = (Instant::now(), request.timeout, request.most.min(MAX_BODY));
        let until = began + timeout;
        let expected = self.member.agents.iter().map(|agent| agent.expected()).max().unwrap_or(0);
        let mut wanted = FIRST_RESERVATION.max(expected + expected / 8).min(most);
        loop {
            let held = if request.held.is_some() {
                self.member.memory.nothing()
            } else {
                let held = timeout_at(until, self.member.memory.reserve(wanted)).await.ok().flatten();
                held.ok_or_else(|| Error::NoMemory(request.address.clone(), timeout))?
            };
            let left = Request { timeout: until.saturating_duration_since(Instant::now()), ..request.clone() };
            match self.read_into(ca, left, held).await {
                // All memory was given back. The retry waits for as much as the response may need.
                Err(Error::NoMemory(..)) if wanted < most && request.method.is_safe() => wanted = most,
                Err(Error::TimedOut(address, _)) => return Err(Error::TimedOut(address, timeout)),
                answer => return answer,
            }
        }
    }

    async fn read_into(&self, ca: Option<&[u8]>, request: Request, mut held: Reservation) -> Result<Response, Error> {
        let most = request.most.min(MAX_BODY);
        let request = Request { most, ..request };
        let mut body = Vec::new();
        let response = self
            .receive(ca, request, &mut |piece: &[u8]| {
                let needed = body.len() + piece.len();
                if needed > body.capacity() {
                    // Most responses are one small piece.
                    let room = needed.max(body.capacity() * 2).min(most.max(needed));
                    if !held.try_grow(room) {
                        return Err(Failure::NoMemory);
                    }
                    body.reserve_exact(room - body.len());
                }
                body.extend_from_slice(piece);
                Ok(())
            })
            .await?;
        // Many small responses must not hold the memory that was reserved before their sizes were known.
        body.shrink_to_fit();
        held.shrink(body.capacity());
        Ok(Response { body, held: Some(Arc::new(held)), ..response })
    }

    /// Sends a request and passes the body on as it arrives, for any status. Nothing of it is kept. If an error
    /// follows, the pieces that were passed on are not a complete response.
    pub async fn read(
        &self,
        ca: Option<&[u8]>,
        request: Request,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Response, Error> {
        self.read_until(ca, request, &mut |piece| {
            sink(piece);
            ControlFlow::Continue(())
        })
        .await
    }

    /// Like [`Provider::read`], but stops when `sink` breaks, which closes the connection.
    pub async fn read_until(
        &self,
        ca: Option<&[u8]>,
        request: Request,
        sink: &mut (dyn FnMut(&[u8]) -> ControlFlow<()> + Send),
    ) -> Result<Response, Error> {
        self.receive(ca, request, &mut |piece: &[u8]| match sink(piece) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Failure::Enough),
        })
        .await
    }

    async fn receive(&self, ca: Option<&[u8]>, request: Request, sink: Sink<'_>) -> Result<Response, Error> {
        let (address, most) = (&request.address, request.most);
        let url = Url::parse(&format!("{address}{}", request.path)).map_err(|_| Error::Address(address.clone()))?;
        let pool = self.pool(address)?;
        let trust = if url.scheme() == "https" { Some(pool.tls(ca)?) } else { None };
        let agent = self.agent(&url, trust.as_ref(), address)?;
        let settings = agent.settings();
        let message = message(&url, &request, settings.keep_alive)?;
        let asking =
            Asking { pool: &pool, names: &self.member.names, agent, address, url: &url, trust, connecting: CONNECT_TIMEOUT };
        let whole = async |turn| {
            let answer = asking.ask(turn, &message).await?;
            let head = answer.read(most, sink).await.map_err(|failure| failure.told(address, most))?;
            Ok(Response { status: head.status.as_u16(), headers: head.headers, body: Vec::new(), held: None })
        };
        asking.within(request.timeout.min(settings.timeout), whole).await
    }

    /// Sends a request and returns the response as soon as its head arrived. The body is read on demand and has no
    /// total timeout. The connection stays in use until the end of the body; dropping the body earlier closes the
    /// connection.
    ///
    /// The target is the request's URI, and `Host` is set from it. The request is retried once, like
    /// [`Provider::send`].
    pub async fn follow(
        &self,
        trust: Option<&TlsIdentity>,
        mut request: http::Request<Bytes>,
        patience: Timeouts,
    ) -> Result<http::Response<Following>, Error> {
        let uri = request.uri().clone();
        let unusable = || Error::Address(uri.to_string());
        let url = Url::parse(&uri.to_string()).map_err(|_| unusable())?;
        let address = &url[..Position::AfterPort];
        *request.uri_mut() = uri.path_and_query().cloned().map_or_else(http::Uri::default, Into::into);
        let host = HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort]).map_err(|_| unusable())?;
        request.headers_mut().insert(HOST, host);
        let pool = self.pool(address)?;
        let trust = trust.filter(|_| url.scheme() == "https").cloned();
        let agent = self.agent(&url, trust.as_ref(), address)?;
        if !agent.settings().keep_alive {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let asking =
            Asking { pool: &pool, names: &self.member.names, agent, address, url: &url, trust, connecting: patience.connecting };
        let answer = asking.within(patience.head, async |turn| asking.ask(turn, &request).await).await?;
        Ok(answer.follow(patience.silence))
    }

    fn pool(&self, address: &str) -> Result<Pool, Error> {
        let shared = self.pool.upgrade().ok_or_else(|| Error::Broken(address.to_owned()))?;
        Ok(Pool { shared, leadership: self.leadership.clone() })
    }

    fn agent(&self, url: &Url, trust: Option<&TlsIdentity>, address: &str) -> Result<&Arc<Agent>, Error> {
        match (url.scheme(), trust) {
            ("http", None) => Ok(&self.member.agents[0]),
            ("https", Some(_)) => Ok(&self.member.agents[1]),
            _ => Err(Error::Address(address.to_owned())),
        }
    }

    /// Like [`Provider::send`], but waits only for `patience`. The request then continues in the background, so that a
    /// server that still processes it does not see the connection close.
    pub async fn send_patiently(&self, ca: Option<Vec<u8>>, request: Request, patience: Duration) -> Result<Response, Error> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let address = request.address.clone();
        let provider = self.clone();
        let pool = self.pool(&address)?;
        {
            let mut background = pool.shared.background.lock().unwrap_or_else(PoisonError::into_inner);
            while background.try_join_next().is_some() {}
            let open = OpenWrite::begin(&self.member);
            background.spawn(async move {
                let ended = provider.read_whole(ca.as_deref(), request).await;
                drop(open);
                // The send fails if the caller stopped waiting.
                let _ = answer.send(ended);
            });
        }
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Broken(address)),
            Err(_) => Err(Error::TimedOut(address, patience)),
        }
    }
}

/// Counts a request that changes something until it ends.
struct OpenWrite(Arc<Member>);

impl OpenWrite {
    fn begin(member: &Arc<Member>) -> Self {
        member.open_writes.send_modify(|open| *open += 1);
        Self(member.clone())
    }
}

impl Drop for OpenWrite {
    fn drop(&mut self) {
        self.0.open_writes.send_modify(|open| *open = open.saturating_sub(1));
    }
}

/// One request: its target and its settings.
struct Asking<'a> {
    pool: &'a Pool,
    names: &'a Names,
    agent: &'a Arc<Agent>,
    address: &'a str,
    url: &'a Url,
    trust: Option<TlsIdentity>,
    connecting: Duration,
}

impl Asking<'_> {
    /// Waits for a permit and runs `act` with it, all within `timeout`.
    async fn within<T>(&self, timeout: Duration, act: impl AsyncFnOnce(Permit) -> Result<T, Error>) -> Result<T, Error> {
        let until = Instant::now() + timeout;
        let Some(turn) = self.agent.turn(until).await else {
            return Err(Error::NoSocket(self.address.to_owned(), timeout, self.agent.settings().max_sockets));
        };
        match tokio::time::timeout_at(until, act(turn)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::TimedOut(self.address.to_owned(), timeout)),
        }
    }

    async fn ask(&self, turn: Permit, message: &Message) -> Result<PendingResponse, Error> {
        let (pool, settings) = (self.pool, self.agent.settings());
        let place: ConnectionKey = (self.address.to_owned(), self.trust.as_ref().map_or(0, |trust| trust.number));
        let broken = || Error::Broken(self.address.to_owned());
        // Check the leadership after the wait, right before the request is sent.
        if !message.method().is_safe() && pool.leadership.as_ref().is_some_and(|leadership| !leadership.holds()) {
            return Err(Error::NotLeading(self.address.to_owned()));
        }
        let turn = match turn.reuse(&place) {
            Err(turn) => turn,
            Ok((lent, stream)) => {
                match begin(stream, message).await {
                    Ok(begun) => return Ok(PendingResponse::new(pool, begun, lent, place, settings.keep_alive)),
                    Err(Failure::Unsent) => {}
                    Err(Failure::Broken) if message.method().is_safe() => {}
                    Err(failure) => {
                        lent.closed(Closed::Broken);
                        return Err(failure.told(self.address, 0));
                    }
                }
                lent.closed(Closed::Peer).ok_or_else(broken)?
            }
        };
        let connecting = turn.connecting();
        let connected = connect::connect(self.names, self.trust.as_ref(), self.url, settings.probes());
        let stream = match tokio::time::timeout(self.connecting, connected).await {
            Ok(stream) => stream.map_err(|error| explain(&error, self.address))?,
            Err(_) => return Err(Error::TimedOut(self.address.to_owned(), self.connecting)),
        };
        let lent = connecting.opened().ok_or_else(broken)?;
        match begin(stream, message).await {
            Ok(begun) => Ok(PendingResponse::new(pool, begun, lent, place, settings.keep_alive)),
            Err(failure) => {
                lent.closed(Closed::Broken);
                Err(failure.told(self.address, 0))
            }
        }
    }
}

/// The process's limit of open files, if the system tells it.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

impl Failure {
    fn told(self, address: &str, most: usize) -> Error {
        match self {
            Self::TooLarge => Error::TooLarge(address.to_owned(), most),
            // The caller retries the request or fills in how long it waited.
            Self::NoMemory => Error::NoMemory(address.to_owned(), Duration::ZERO),
            Self::Broken | Self::BrokenOff | Self::Enough | Self::Unsent => Error::Broken(address.to_owned()),
        }
    }
}

/// The HTTP request for a [`Request`].
fn message(url: &Url, request: &Request, keep_alive: bool) -> Result<Message, Error> {
    let refused = || Error::Address(request.address.clone());
    let mut builder = http::Request::builder()
        .method(request.method.clone())
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &url[Position::BeforeHost..Position::AfterPort]);
    for (name, value) in &request.headers {
        let mut value = HeaderValue::from_str(value).map_err(|_| refused())?;
        // Any header may come from a Secret.
        value.set_sensitive(true);
        builder = builder.header(name.as_ref(), value);
    }
    if !keep_alive {
        builder = builder.header(CONNECTION, "close");
    }
    if request.body.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    builder.body(Bytes::from(request.body.clone().unwrap_or_default())).map_err(|_| refused())
}

/// Errors in our own words: the library's texts name internals.
fn explain(error: &std::io::Error, address: &str) -> Error {
    let address = address.to_owned();
    match error.get_ref().and_then(|held| held.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => Error::Certificate(address),
        Some(_) => Error::Broken(address),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => Error::Broken(address),
        None => Error::Connect(address),
    }
}
