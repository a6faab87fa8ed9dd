use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const LONG: Duration = Duration::from_secs(20);

/// What a server does with one request.
#[derive(Clone)]
enum Act {
    Say(String),
    SayAndClose(&'static str),
    Close,
    Hang,
}

/// A server that does this with its first request, the next with its second, and so on; the last for all that follow.
struct Server {
    address: String,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (opened, asked, script) = (connections.clone(), requests.clone(), Arc::new(script));
        let task = tokio::spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::SeqCst);
                served.spawn(answer(stream, asked.clone(), script.clone()));
            }
        });
        Self { address, connections, requests, task }
    }

    fn counts(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
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
        }
    }
}

fn say(text: &str) -> Act {
    Act::Say(text.to_owned())
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let (pool, server) = (Pool::new(), Server::start(vec![say(OK)]).await);
    for _ in 0..3 {
        assert_eq!(pool.send(None, server.ask(Method::GET)).await.expect("an answer").body, b"ok");
    }
    assert_eq!((server.counts(), pool.idle()), ((1, 3), 1));
}

#[tokio::test]
async fn one_that_the_server_has_closed_is_replaced() {
    let (pool, server) = (Pool::new(), Server::start(vec![Act::SayAndClose(OK), say(OK)]).await);
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    pool.send(None, server.ask(Method::GET)).await.expect("an answer over a new connection");
    assert_eq!(server.counts(), (2, 2));
}

#[tokio::test]
async fn a_question_that_got_lost_on_an_old_connection_is_asked_again_if_that_is_safe() {
    for (method, answered, asked) in [(Method::GET, true, 3), (Method::PATCH, false, 2)] {
        let (pool, server) = (Pool::new(), Server::start(vec![say(OK), Act::Close, say(OK)]).await);
        pool.send(None, server.ask(Method::GET)).await.expect("an answer");
        let again = pool.send(None, server.ask(method.clone())).await;
        assert_eq!((again.is_ok(), server.counts().1), (answered, asked), "{method}: {again:?}");
        assert!(answered || matches!(again, Err(Error::Broken(_))));
    }
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_not_tried_again() {
    let (pool, server) = (Pool::new(), Server::start(vec![Act::Close]).await);
    assert!(matches!(pool.send(None, server.ask(Method::GET)).await, Err(Error::Broken(_))));
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn what_ends_with_its_answer_is_not_kept() {
    for text in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: Close\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nok",
        // Whoever says more than was asked for may say anything to the next question.
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nnever",
    ] {
        let (pool, server) = (Pool::new(), Server::start(vec![Act::SayAndClose(text)]).await);
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
    let (pool, server) = (Pool::new(), Server::start(vec![say(chunked), Act::SayAndClose(short), say(OK)]).await);
    assert_eq!(pool.send(None, server.ask(Method::GET)).await.expect("an answer").body, b"abcde");
    assert!(matches!(pool.send(None, server.ask(Method::GET)).await, Err(Error::Broken(_))), "half an answer is none");
    assert_eq!((server.counts(), pool.idle()), ((1, 2), 0));
}

#[tokio::test]
async fn a_body_beyond_all_measure_is_given_up() {
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", MOST_BODY + 1, "x".repeat(MOST_BODY + 1));
    let (pool, server) = (Pool::new(), Server::start(vec![Act::Say(text)]).await);
    assert!(matches!(pool.send(None, server.ask(Method::GET)).await, Err(Error::TooLarge(_))));
    assert_eq!(pool.idle(), 0);
}

#[tokio::test]
async fn who_hangs_is_left_and_the_connection_with_it() {
    let (pool, server) = (Pool::new(), Server::start(vec![say(OK), Act::Hang]).await);
    pool.send(None, server.ask(Method::GET)).await.expect("an answer");
    let impatient = Request { timeout: Duration::from_millis(50), ..server.ask(Method::GET) };
    assert!(matches!(pool.send(None, impatient).await, Err(Error::TimedOut(..))));
    assert_eq!(pool.idle(), 0);
}

#[tokio::test]
async fn a_place_has_few_idle_connections_however_many_were_needed() {
    let (pool, server) = (Pool::new(), Server::start(vec![say(OK)]).await);
    let asked = futures::future::join_all((0..20).map(|_| pool.send(None, server.ask(Method::GET)))).await;
    assert!(asked.iter().all(Result::is_ok));
    assert!((1..=4).contains(&pool.idle()), "{}", pool.idle());
}

#[tokio::test]
async fn a_replica_that_does_not_act_reads_and_changes_nothing() {
    let server = Server::start(vec![say(OK)]).await;
    for (leadership, acts) in [(Leadership::none(), false), (Leadership::always(), true)] {
        let pool = Pool::led(leadership);
        pool.send(None, server.ask(Method::GET)).await.expect("an answer");
        let before = server.counts().1;
        let written = pool.send(None, server.ask(Method::PATCH)).await;
        assert_eq!(written.is_ok(), acts, "{written:?}");
        assert_eq!(server.counts().1 - before, usize::from(acts), "a refused write never leaves");
    }
}
