use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use http_body_util::BodyExt as _;

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const LONG: Duration = Duration::from_secs(20);

/// The server's reaction to one request.
#[derive(Clone)]
enum Act {
    Say(String),
    SayAndClose(&'static str),
    Close,
    Hang,
    /// Answers when the test adds a permit.
    Wait(Arc<Semaphore>),
}

/// A server with one reaction for each request in order; the last one repeats.
struct Server {
    address: String,
    /// The port of the client of each connection, in the order of acceptance.
    connections: Arc<Mutex<Vec<u16>>>,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let (connections, requests) = (Arc::<Mutex<Vec<u16>>>::default(), Arc::new(AtomicUsize::new(0)));
        let (opened, asked, script) = (connections.clone(), requests.clone(), Arc::new(script));
        let task = tokio::spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, client)) = listener.accept().await {
                opened.lock().expect("the clients").push(client.port());
                served.spawn(answer(stream, asked.clone(), script.clone()));
            }
        });
        Self { address, connections, requests, task }
    }

    fn counts(&self) -> (usize, usize) {
        (self.connections.lock().expect("the clients").len(), self.requests.load(Ordering::SeqCst))
    }

    fn ask(&self, method: Method) -> Request {
        Request { method, ..Request::get(&self.address, "/x", LONG) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, requests: Arc<AtomicUsize>, script: Arc<Vec<Act>>) {
    loop {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut asked).await, Ok(1..)) {
                return;
            }
        }
        let n = requests.fetch_add(1, Ordering::SeqCst);
        match &script[n.min(script.len() - 1)] {
            Act::Say(text) => stream.write_all(text.as_bytes()).await.unwrap_or_default(),
            Act::SayAndClose(text) => return stream.write_all(text.as_bytes()).await.unwrap_or_default(),
            Act::Close => return,
            Act::Hang => std::future::pending().await,
            Act::Wait(told) => {
                let Ok(told) = told.acquire().await else { return };
                told.forget();
                stream.write_all(OK.as_bytes()).await.unwrap_or_default();
            }
        }
    }
}

/// A provider, together with its pool, which must outlive it.
struct Asker(Pool, Provider);

impl std::ops::Deref for Asker {
    type Target = Provider;

    fn deref(&self) -> &Provider {
        &self.1
    }
}

impl Asker {
    fn of(pool: Pool) -> Self {
        let provider = pool.provider("test");
        Self(pool, provider)
    }

    fn with(settings: PoolSettings) -> Self {
        Self::of(Pool::new(settings))
    }

    fn tally(&self) -> Tally {
        self.0.statistics().first().map(|statistics| statistics.tally).unwrap_or_default()
    }

    /// Counts of closed connections by reason, without zeros.
    fn closed(&self) -> Vec<(&'static str, u64)> {
        let tally = self.tally();
        Closed::ALL.into_iter().map(|why| (why.name(), tally.closed(why))).filter(|(_, n)| *n > 0).collect()
    }
}

fn pool() -> Asker {
    Asker::of(Pool::default())
}

fn say(text: &str) -> Act {
    Act::Say(text.to_owned())
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let (pool, server) = (pool(), Server::start(vec![say(OK)]).await);
    for _ in 0..3 {
        assert_eq!(pool.send(None, server.ask(Method::GET)).await.expect("an answer").body, b"ok");
    }
    assert_eq!((server.counts(), pool.idle()), ((1, 3), 1));
}

#[tokio::test]
async fn one_that_the_server_has_closed_is_replaced() {
    let (pool, server) = (pool(), Server::start(vec![Act::SayAndClose(OK), say(OK)]).await);
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    pool.send(None, server.ask(Method::GET)).await.expect("an answer over a new connection");
    assert_eq!(server.counts(), (2, 2));
}

#[tokio::test]
async fn a_question_that_got_lost_on_an_old_connection_is_asked_again_if_that_is_safe() {
    for (method, answered, asked) in [(Method::GET, true, 3), (Method::PATCH, false, 2)] {
        let (pool, server) = (pool(), Server::start(vec![say(OK), Act::Close, say(OK)]).await);
        pool.send(None, server.ask(Method::GET)).await.expect("an answer");
        let again = pool.send(None, server.ask(method.clone())).await;
        assert_eq!((again.is_ok(), server.counts().1), (answered, asked), "{method}: {again:?}");
        assert!(answered || matches!(again, Err(Error::Broken(_))));
    }
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_not_tried_again() {
    let (pool, server) = (pool(), Server::start(vec![Act::Close]).await);
    assert!(matches!(pool.send(None, server.ask(Method::GET)).await, Err(Error::Broken(_))));
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn what_ends_with_its_answer_is_not_kept() {
    for text in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: Close\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nok",
        // Something on the way may believe the length.
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        // A server that sends more than one response could inject the next one.
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nnever",
    ] {
        let (pool, server) = (pool(), Server::start(vec![Act::SayAndClose(text)]).await);
        for n in 1..=2 {
            let answer = pool.send(None, server.ask(Method::GET)).await.expect("an answer");
            assert_eq!((answer.body.as_slice(), pool.idle()), (&b"ok"[..], 0), "{text}");
            assert_eq!(server.counts(), (n, n));
        }
    }
}

#[tokio::test]
async fn chunks_are_put_together_and_a_body_that_breaks_off_is_none() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n";
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";
    let (pool, server) = (pool(), Server::start(vec![say(chunked), Act::SayAndClose(short), say(OK)]).await);
    assert_eq!(pool.send(None, server.ask(Method::GET)).await.expect("an answer").body, b"abcde");
    assert!(matches!(pool.send(None, server.ask(Method::GET)).await, Err(Error::Broken(_))), "half an answer is none");
    assert_eq!((server.counts(), pool.idle()), ((1, 2), 0));
}

#[tokio::test]
async fn a_server_that_answers_before_it_has_read_the_request_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.read_exact(&mut [0; 16]).await.expect("the beginning of a request");
        stream.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await.expect("a client that listens");
        stream
    });
    let pool = pool();
    // The sockets hold less than this.
    let body = Some(vec![b'x'; 32 * 1024 * 1024]);
    let large = Request { body, method: Method::POST, ..Request::get(&address, "/x", LONG) };
    let answer = pool.send(None, large).await.expect("a refusal");
    assert_eq!((answer.status, &answer.body[..], pool.idle()), (413, &b"no"[..], 0));
    drop(server);
}

#[tokio::test]
async fn what_comes_without_end_before_a_body_is_given_up() {
    let endless = |before: &str| format!("HTTP/1.1 200 OK\r\n{before}{}", "x-more: and more\r\n".repeat(90_000));
    for text in [
        endless(""),
        endless("transfer-encoding: chunked\r\n\r\n0\r\n"),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;{}", "x".repeat(90_000)),
        format!("HTTP/1.1 200 OK\r\nx-many: {}", "x".repeat(90_000)),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101)),
    ] {
        let (pool, server) = (pool(), Server::start(vec![Act::Say(text)]).await);
        let answer = pool.send(None, server.ask(Method::GET)).await;
        assert!(matches!(answer, Err(Error::Broken(_))), "{answer:?}");
        assert_eq!(pool.closed(), [("broken", 1)]);
    }
}

#[tokio::test]
async fn responses_that_stop_halfway_mix_with_no_others() {
    // All of them are received with the buffer of one thread.
    let go = Arc::new(Semaphore::new(0));
    let (pool, mut asked) = (pool(), JoinSet::new());
    for n in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let go = go.clone();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.expect("a request");
            }
            let body = format!("node {n:02}").repeat(1000);
            let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            let text = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
            // Parts of a head, of a chunk's size, of its data and of its end.
            let cuts = [10, 46, 48, 49, 60, 2000, text.len() - 3];
            for (from, to) in std::iter::once(0).chain(cuts).zip(cuts.into_iter().chain([text.len()])) {
                stream.write_all(&text.as_bytes()[from..to]).await.expect("a part");
                go.acquire().await.expect("a turn").forget();
            }
        });
        let provider = pool.1.clone();
        asked.spawn(async move { (n, provider.send(None, Request::get(&address, "/x", LONG)).await.expect("an answer").body) });
    }
    let turns = tokio::spawn(async move {
        loop {
            go.add_permits(1);
            tokio::task::yield_now().await;
        }
    });
    while let Some(answer) = asked.join_next().await {
        let (n, body) = answer.expect("no panic");
        assert_eq!(String::from_utf8_lossy(&body), format!("node {n:02}").repeat(1000));
    }
    turns.abort();
}

#[tokio::test]
async fn a_body_beyond_all_measure_is_given_up() {
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", MAX_BODY + 1, "x".repeat(MAX_BODY + 1));
    let (pool, server) = (pool(), Server::start(vec![Act::Say(text)]).await);
    assert!(matches!(pool.send(None, server.ask(Method::GET)).await, Err(Error::TooLarge(..))));
    assert_eq!(pool.idle(), 0);
}

#[tokio::test]
async fn who_hangs_is_left_and_the_connection_with_it() {
    let (pool, server) = (pool(), Server::start(vec![say(OK), Act::Hang]).await);
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    let impatient = Request { timeout: Duration::from_millis(50), ..server.ask(Method::GET) };
    assert!(matches!(pool.send(None, impatient).await, Err(Error::TimedOut(..))));
    assert_eq!(pool.idle(), 0);
}

/// Sends a request whose body is read as it arrives.
async fn follow(pool: &Asker, server: &Server, silence: Duration) -> http::Response<Following> {
    let patience = Timeouts { connecting: LONG, head: LONG, silence };
    let request = http::Request::get(format!("{}/x?watch=1", server.address)).body(Bytes::new()).expect("a request");
    pool.follow(None, request, patience).await.expect("the head of an answer")
}

#[tokio::test]
async fn what_is_followed_keeps_its_connection_until_its_end_and_then_another_has_it() {
    let (pool, server) =
        (pool(), Server::start(vec![say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")]).await);
    for _ in 0..3 {
        let answer = follow(&pool, &server, LONG).await;
        assert_eq!((answer.status(), pool.tally().active, pool.idle()), (http::StatusCode::OK, 1, 0));
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "ok");
        assert_eq!((pool.tally().active, pool.idle()), (0, 1));
    }
    assert_eq!((server.counts(), pool.tally().reuses), ((1, 3), 2));
}

#[tokio::test]
async fn what_is_followed_no_further_is_closed_and_what_falls_silent_is_over() {
    let (pool, server) = (pool(), Server::start(vec![say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok")]).await);
    let mut body = follow(&pool, &server, LONG).await.into_body();
    assert_eq!(body.frame().await.expect("more").expect("a frame").into_data().expect("data"), "ok");
    drop(body);
    assert_eq!(pool.closed(), [("abandoned", 1)]);

    let body = follow(&pool, &server, Duration::from_millis(50)).await.into_body();
    let failure = body.collect().await.expect_err("no end in sight");
    assert_eq!(failure, Error::TimedOut(server.address.clone(), Duration::from_millis(50)));
    assert_eq!(pool.closed(), [("broken", 1), ("abandoned", 1)]);
}

#[tokio::test]
async fn what_is_followed_while_its_provider_is_destroyed_goes_on_to_its_end_and_is_the_last() {
    let (pool, server) = (pool(), Server::start(vec![say(OK)]).await);
    let answer = follow(&pool, &server, LONG).await;
    assert_eq!(pool.0.destroy("test", None), Some((0, 1)));
    assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "ok");
    assert_eq!((pool.idle(), pool.closed()), (0, vec![("destroyed", 1)]));
}

#[tokio::test]
async fn a_replica_that_does_not_act_reads_and_changes_nothing() {
    let server = Server::start(vec![say(OK)]).await;
    for (leadership, acts) in [(Leadership::none(), false), (Leadership::always(), true)] {
        let pool = Asker::of(Pool::default().led(leadership));
        pool.send(None, server.ask(Method::GET)).await.expect("an answer");
        let before = server.counts().1;
        let written = pool.send(None, server.ask(Method::PATCH)).await;
        assert_eq!(written.is_ok(), acts, "{written:?}");
        assert_eq!(server.counts().1 - before, usize::from(acts), "a refused write never leaves");
    }
}

/// Waits for an effect of another task.
async fn until(what: impl Fn() -> bool) {
    let patience = Instant::now() + LONG;
    while !what() {
        assert!(Instant::now() < patience, "it never happens");
        tokio::task::yield_now().await;
    }
}

/// The lines of the kernel's list for the client's side of the connections that a server accepted. Connections of other
/// tests to a server that had the same port before, or on another address, are not among them.
fn sockets(server: &Server) -> Vec<String> {
    let ports = server.connections.lock().expect("the clients");
    let remote = server.address.rsplit(':').next().expect("a port").parse::<u16>().expect("a port");
    let ends = ports.iter().map(|port| (format!("0100007F:{port:04X}"), format!("0100007F:{remote:04X}"))).collect::<Vec<_>>();
    let list = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's list");
    let of_this_server = |line: &&str| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        // A socket without an inode belongs to no process: only the kernel still waits.
        ends.iter().any(|(local, remote)| fields[1] == local && fields[2] == remote) && fields[9] != "0"
    };
    list.lines().skip(1).filter(of_this_server).map(str::to_owned).collect()
}

fn size(count: u64) -> usize {
    usize::try_from(count).expect("small")
}

#[tokio::test]
async fn every_connection_is_counted_and_so_is_its_end() {
    let one = |settings: PoolSettings, script: Vec<Act>, twice: bool| async move {
        let (pool, server) = (Asker::with(settings), Server::start(script).await);
        for _ in 0..=usize::from(twice) {
            let _ = pool.send(None, Request { timeout: Duration::from_millis(200), ..server.ask(Method::GET) }).await;
        }
        let tally = pool.tally();
        assert_eq!(size(tally.opened), server.counts().0, "each connection was seen by the server");
        assert_eq!(size(tally.requests), server.counts().1, "and so was each request");
        assert_eq!(tally.open(), tally.opened - tally.closed.iter().sum::<u64>());
        let sockets = sockets(&server);
        assert_eq!(size(tally.open()), sockets.len(), "the kernel counts the same: {sockets:#?}");
        (pool.closed(), tally.reuses, tally.idle)
    };
    let default = PoolSettings::default();
    let zero = Duration::ZERO;
    assert_eq!(one(default, vec![say(OK)], true).await, (vec![], 1, 1));
    assert_eq!(
        one(PoolSettings { free_socket_timeout: zero, ..default }, vec![say(OK)], true).await,
        (vec![("expired", 1)], 0, 1)
    );
    assert_eq!(
        one(PoolSettings { max_socket_lifetime: zero, ..default }, vec![say(OK)], true).await,
        (vec![("lifetime", 2)], 0, 0)
    );
    assert_eq!(one(PoolSettings { max_free_sockets: 0, ..default }, vec![say(OK)], true).await, (vec![("full", 2)], 0, 0));
    assert_eq!(one(PoolSettings { keep_alive: false, ..default }, vec![say(OK)], true).await, (vec![("done", 2)], 0, 0));
    assert_eq!(one(default, vec![say(OK), Act::Close, say(OK)], true).await, (vec![("peer", 1)], 1, 1));
    assert_eq!(one(default, vec![Act::Close], false).await, (vec![("broken", 1)], 0, 0));
    assert_eq!(one(default, vec![Act::Hang], false).await, (vec![("abandoned", 1)], 0, 0));
}

#[tokio::test]
async fn who_cannot_be_reached_was_tried() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let pool = pool();
    assert!(matches!(pool.send(None, Request::get(&address, "/", LONG)).await, Err(Error::Connect(_))));
    assert_eq!((pool.tally().refused, pool.tally().opened, pool.tally().open()), (1, 0, 0));
}

#[tokio::test]
async fn requests_beyond_max_sockets_wait_for_their_turn_first_come_first_served() {
    let told = Arc::new(Semaphore::new(0));
    let server = Server::start(vec![Act::Wait(told.clone())]).await;
    let pool = Asker::with(PoolSettings { max_sockets: 2, ..PoolSettings::default() });
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut asked = JoinSet::new();
    for n in 0..8 {
        let (provider, request, done) = (pool.1.clone(), server.ask(Method::GET), done.clone());
        asked.spawn(async move {
            provider.send(None, request).await.expect("an answer");
            done.lock().expect("the list").push(n);
        });
        // Each request starts after the one before it.
        until(|| pool.tally().active + pool.tally().waiting == n + 1).await;
    }
    assert_eq!((pool.tally().active, pool.tally().waiting, server.counts()), (2, 6, (2, 2)));
    for n in 1..=8 {
        told.add_permits(1);
        until(|| done.lock().expect("the list").len() == n).await;
    }
    while asked.join_next().await.is_some() {}
    let done = done.lock().expect("the list").clone();
    // The two requests in progress may end in either order.
    assert!(done.iter().enumerate().all(|(at, n)| at.abs_diff(usize::try_from(*n).expect("small")) <= 1), "{done:?}");
    let tally = pool.tally();
    assert_eq!((tally.peak, tally.opened, tally.requests, tally.reuses, tally.waits, tally.waiting), (2, 2, 8, 6, 6, 0));
    assert!(tally.waited > 0);
}

#[tokio::test]
async fn who_waits_in_vain_is_told_and_who_stops_waiting_takes_no_turn() {
    let told = Arc::new(Semaphore::new(0));
    let server = Server::start(vec![Act::Wait(told.clone())]).await;
    let pool = Asker::with(PoolSettings { max_sockets: 1, ..PoolSettings::default() });
    let (provider, request) = (pool.1.clone(), server.ask(Method::GET));
    let first = tokio::spawn(async move { provider.send(None, request).await });
    until(|| pool.tally().active == 1).await;
    let impatient = Request { timeout: Duration::from_millis(20), ..server.ask(Method::GET) };
    assert!(matches!(pool.send(None, impatient).await, Err(Error::NoSocket(_, _, 1))));
    let (provider, request) = (pool.1.clone(), server.ask(Method::GET));
    let second = tokio::spawn(async move { provider.send(None, request).await });
    until(|| pool.tally().waiting == 1).await;
    second.abort();
    until(|| pool.tally().waiting == 0).await;
    told.add_permits(2);
    first.await.expect("it ends").expect("an answer");
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    assert_eq!((pool.tally().waits, pool.tally().given_up, server.counts()), (2, 2, (1, 2)));
}

#[tokio::test]
async fn limits_change_while_requests_are_under_way_and_none_is_lost() {
    let told = Arc::new(Semaphore::new(0));
    let server = Server::start(vec![Act::Wait(told.clone())]).await;
    let at_most = |max_sockets| PoolSettings { max_sockets, ..PoolSettings::default() };
    let pool = Asker::with(at_most(4));
    let mut asked = JoinSet::new();
    for _ in 0..20 {
        let (provider, request) = (pool.1.clone(), server.ask(Method::GET));
        asked.spawn(async move { provider.send(None, request).await });
    }
    until(|| pool.tally().active == 4 && pool.tally().waiting == 16).await;
    pool.configure(at_most(2));
    told.add_permits(2);
    // Two requests ended, and their permits were removed.
    until(|| pool.tally().active == 2 && pool.tally().waiting == 16).await;
    told.add_permits(1);
    until(|| pool.tally().waiting == 15).await;
    assert_eq!(pool.tally().active, 2);
    pool.configure(at_most(3));
    pool.configure(at_most(1));
    pool.configure(at_most(6));
    until(|| pool.tally().active == 6).await;
    told.add_permits(17);
    while let Some(answer) = asked.join_next().await {
        answer.expect("it ends").expect("an answer");
    }
    assert!(pool.tally().peak <= 6, "{:?}", pool.tally());
    assert_eq!((pool.tally().active, pool.tally().waiting, server.counts().1), (0, 0, 20));
    pool.configure(PoolSettings { max_free_sockets: 1, ..at_most(6) });
    assert_eq!((pool.idle(), sockets(&server).len()), (1, 1), "and what is too much is closed at once");
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_one_to_another_place() {
    let servers = [Server::start(vec![say(OK)]).await, Server::start(vec![say(OK)]).await, Server::start(vec![say(OK)]).await];
    let pool = Asker::with(PoolSettings { max_sockets: 2, ..PoolSettings::default() });
    for server in servers.iter().chain(&servers) {
        pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    }
    assert_eq!((pool.tally().peak, pool.tally().idle, pool.closed()), (2, 2, vec![("full", 4)]));
    assert_eq!(servers.iter().map(|server| sockets(server).len()).collect::<Vec<_>>(), [0, 1, 1], "the oldest went");
}

#[tokio::test]
async fn destroying_closes_the_idle_now_and_the_active_when_they_are_done() {
    let told = Arc::new(Semaphore::new(0));
    let server = Server::start(vec![say(OK), Act::Wait(told.clone())]).await;
    let other = Server::start(vec![say(OK)]).await;
    let pool = pool();
    pool.send(None, other.ask(Method::GET)).await.expect("an answer");
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    let (provider, request) = (pool.1.clone(), server.ask(Method::GET));
    let busy = tokio::spawn(async move { provider.send(None, request).await });
    until(|| server.counts().1 == 2).await;
    assert_eq!(pool.0.destroy("absent", None), None);
    assert_eq!(pool.0.destroy("test", Some(Protocol::Https)), None, "nothing was asked over TLS");
    assert_eq!(pool.0.destroy("test", Some(Protocol::Http)), Some((1, 1)));
    assert_eq!((pool.tally().idle, pool.tally().active), (0, 1));
    told.add_permits(2);
    busy.await.expect("it ends").expect("what was under way is answered");
    assert_eq!((pool.tally().open(), pool.closed()), (0, vec![("destroyed", 2)]));
    pool.send(None, server.ask(Method::GET)).await.expect("and the next opens a connection");
    assert_eq!((pool.idle(), server.counts().0), (1, 2));
}

#[tokio::test]
async fn a_forgotten_provider_leaves_nothing_behind() {
    let server = Server::start(vec![say(OK)]).await;
    let pool = pool();
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    pool.0.forget("test");
    assert!(pool.0.statistics().is_empty());
    pool.send(None, server.ask(Method::GET)).await.expect("a late question is still answered");
    assert_eq!(sockets(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_sweep_closes_what_nobody_will_use() {
    let server = Server::start(vec![say(OK), Act::SayAndClose(OK)]).await;
    let pool = pool();
    let agent = pool.1.member.agents[0].clone();
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    agent.sweep();
    assert_eq!(pool.idle(), 1, "what is fresh stays");
    pool.configure(PoolSettings { free_socket_timeout: Duration::ZERO, ..PoolSettings::default() });
    agent.sweep();
    assert_eq!(pool.closed(), [("expired", 1)]);
    pool.configure(PoolSettings::default());
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    until(|| {
        agent.sweep();
        pool.idle() == 0
    })
    .await;
    assert_eq!((pool.closed(), sockets(&server).len()), (vec![("expired", 1), ("peer", 1)], 0));
}

#[tokio::test]
async fn tcp_looks_after_connections_that_are_silent() {
    let server = Server::start(vec![say(OK)]).await;
    for (keep_alive, probed) in [(true, true), (false, false)] {
        let url = Url::parse(&server.address).expect("an address");
        let settings = PoolSettings { keep_alive, ..PoolSettings::default() };
        let stream = connect::connect(&Names::default(), None, &url, settings.probes()).await.expect("a connection");
        let tokio_util::either::Either::Left(tcp) = &stream else { panic!("no TLS was asked for") };
        assert_eq!(socket2::SockRef::from(tcp).keepalive().expect("an option"), probed);
    }
}

#[tokio::test]
async fn the_average_age_is_that_of_the_open_connections() {
    let server = Server::start(vec![say(OK)]).await;
    let pool = pool();
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    let age = |pool: &Asker| pool.0.statistics()[0].average_age;
    let first = age(&pool).expect("there is one");
    until(|| age(&pool).is_some_and(|age| age > first)).await;
    let _ = pool.0.destroy("test", None);
    assert_eq!(age(&pool), None);
}

#[test]
fn an_authority_in_use_is_remembered_however_many_others_there_are() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = rcgen::KeyPair::generate().expect("a key");
    let ca = |n: usize| {
        let params = rcgen::CertificateParams::new(vec![format!("ca-{n}.example.com")]).expect("a name");
        params.self_signed(&key).expect("a certificate").pem().into_bytes()
    };
    let pool = Pool::default();
    let number = |pem: &[u8]| pool.tls(Some(pem)).expect("a CA").number;
    let first = ca(0);
    let known = number(&first);
    for n in 1..MAX_AUTHORITIES * 2 {
        number(format!("{}# {n}\n", String::from_utf8_lossy(&first)).as_bytes());
        assert_eq!(number(&first), known, "after {n} others");
    }
    assert!(pool.shared.authorities.lock().unwrap().1.len() <= MAX_AUTHORITIES);
    assert_ne!(number(&ca(1)), known);
}

#[tokio::test]
async fn a_name_that_one_policy_gives_an_address_is_not_known_to_another() {
    let server = Server::start(vec![Act::Say(OK.into())]).await;
    let at: SocketAddr = server.address.trim_start_matches("http://").parse().expect("an address");
    let pool = Pool::default();
    let (one, other) = (pool.provider("a/one"), pool.provider("b/other"));
    one.name("gateway.a.svc", vec![at]);
    let ask = || Request::get(&format!("http://gateway.a.svc:{}", at.port()), "/x", LONG);
    assert_eq!(one.send(None, ask()).await.expect("an answer").status, 200);
    assert!(matches!(other.send(None, ask()).await, Err(Error::Connect(_))));
    one.unname("gateway.a.svc");
    assert_eq!(server.counts().0, 1);
}
