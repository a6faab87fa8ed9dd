//! The cost of watching 5,000 nodes: CPU for each thousand samples, memory, and connections. `make bench`.
//!
//! The CPU is compared with a bare reader, a thread that reads the nodes in sequence over blocking sockets. It reads after each
//! round of the sampler, because the speed of the machine changes. The nodes are listeners on loopback in another process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss, missing_docs)]

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use idleconn_operator::{
    controller::connections,
    pass::world::SampledNode,
    pool::{Pool, Request},
    signals::{Sampler, Source, Watch, page},
};

/// Number of nodes.
const NODES: u32 = 5000;
/// Time between two rounds.
const INTERVAL: Duration = Duration::from_secs(15);
/// Measured rounds: one differs from the next by a tenth.
const ROUNDS: u32 = 8;
/// Time in which the bare reader reads a round: less than what the sampler leaves of the interval.
const BARE: Duration = Duration::from_millis(5_500);
/// Pages: the path, the approximate size in bytes, and the most CPU for a thousand samples: in seconds, and as a multiple of the
/// bare reader's.
const PAGES: [(&str, usize, f64, f64); 2] = [("/large", 227_000, 0.135, 1.8), ("/small", 12_000, 0.12, f64::INFINITY)];
/// Nodes of one group.
const GROUP: u32 = 32;
/// In KiB.
const MAX_MEMORY: u64 = 60 * 1024;

fn address(node: u32) -> SocketAddrV4 {
    let [_, a, b, c] = (node / 250 * 256 + node % 250 + 1).to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(127, 60 + a, b, c), 9464)
}

/// A page of a Go service.
fn text(bytes: usize) -> String {
    let mut page = String::from(
        "# TYPE go_goroutines gauge\ngo_goroutines 2517\n# TYPE go_sched_gomaxprocs_threads gauge\ngo_sched_gomaxprocs_threads 4\nprocess_open_fds 812\nprocess_start_time_seconds 1.7e+09\n",
    );
    let mut n = 0;
    while page.len() < bytes {
        let _ = writeln!(page, "http_requests_total{{code=\"200\",handler=\"/api/v1/objects/{n}\",method=\"get\"}} {}", n * 17);
        n += 1;
    }
    page
}

/// Runs all nodes until standard input ends.
fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let accepted = Arc::new(AtomicUsize::new(0));
        let [large, small] = PAGES.map(|(_, bytes, ..)| bytes::Bytes::from(text(bytes)));
        for node in 0..NODES {
            let listener = tokio::net::TcpListener::bind(address(node)).await.unwrap();
            let (accepted, large, small) = (accepted.clone(), large.clone(), small.clone());
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    accepted.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(answer(stream, accepted.clone(), large.clone(), small.clone()));
                }
            });
        }
        println!("ready");
        let mut line = String::new();
        tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line)).await.unwrap().unwrap();
    });
    runtime.shutdown_background();
}

async fn answer(mut stream: tokio::net::TcpStream, accepted: Arc<AtomicUsize>, large: bytes::Bytes, small: bytes::Bytes) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut asked = Vec::with_capacity(512);
    loop {
        asked.clear();
        while !asked.ends_with(b"\r\n\r\n") {
            match stream.read_buf(&mut asked).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let body = match asked.get(..10) {
            Some(b"GET /large") => large.clone(),
            Some(b"GET /small") => small.clone(),
            _ => accepted.load(Ordering::Relaxed).to_string().into(),
        };
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&body).await.is_err() {
            return;
        }
    }
}

struct Farm(Child);

impl Farm {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self(child)
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// CPU seconds that this process (`self`) or this thread (`thread-self`) has used; a tick is 10 ms.
fn cpu(of: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{of}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// The mean CPU seconds for a thousand samples.
fn for_a_thousand(used: f64) -> f64 {
    used * 1000.0 / f64::from(NODES) / f64::from(ROUNDS)
}

/// Memory in KiB: the present and the greatest value.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// A reader that only reads, with the sampler's groups of nodes.
struct Bare {
    ask: mpsc::Sender<()>,
    thread: JoinHandle<f64>,
}

impl Bare {
    /// Connects to all nodes and reads each of them once.
    fn start(path: &str) -> Self {
        let mut streams: Vec<TcpStream> = (0..NODES).map(|node| TcpStream::connect(address(node)).unwrap()).collect();
        let question = format!("GET {path} HTTP/1.1\r\nhost: node\r\n\r\n");
        let mut buffer = vec![0; 256 * 1024];
        read(&mut streams, &question, &mut buffer);
        let (ask, asked) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let began = cpu("thread-self");
            for () in asked {
                read(&mut streams, &question, &mut buffer);
            }
            cpu("thread-self") - began
        });
        Self { ask, thread }
    }

    /// Reads all nodes once more, in the background.
    fn round(&self) {
        self.ask.send(()).unwrap();
    }

    /// Waits for the last round. Returns the CPU seconds of all rounds.
    fn used(self) -> f64 {
        drop(self.ask);
        self.thread.join().unwrap()
    }
}

fn read(streams: &mut [TcpStream], question: &str, buffer: &mut [u8]) {
    let began = Instant::now();
    for (n, stream) in (0..).zip(streams) {
        let due = began + BARE / NODES * (n - n % GROUP);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(question.as_bytes()).unwrap();
        let (mut got, mut wanted) = (0, usize::MAX);
        while got < wanted {
            got += stream.read(&mut buffer[got..]).unwrap();
            if wanted == usize::MAX {
                let end = buffer[..got].windows(4).position(|four| four == b"\r\n\r\n").unwrap();
                let head = std::str::from_utf8(&buffer[..end]).unwrap();
                wanted = end + 4 + head.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
            }
        }
    }
}

/// CPU seconds for a thousand samples: of the sampler, and of the bare reader.
async fn sampled(path: &'static str) -> (f64, f64) {
    let bare = Bare::start(path);
    let pool = Pool::default();
    let provider = pool.provider("farm");
    provider.configure(connections::settings(NODES as usize, INTERVAL));
    let nodes = (0..NODES)
        .map(|n| SampledNode {
            name: format!("node-{n}"),
            address: format!("http://{}", address(n)),
            named: false,
            pod: String::new(),
            path: path.into(),
        })
        .collect();
    let (sender, mut rounds) = tokio::sync::mpsc::unbounded_channel();
    let probe = page::Probe::gauge("go_goroutines", page::Threshold::PerCpu(512.0));
    let watch = Watch {
        nodes,
        source: Source::Nodes(Arc::new(probe)),
        interval: INTERVAL,
        ca: None,
        token: None,
        permit: None,
        headers: Vec::new(),
        key: "farm".to_owned(),
    };
    let after = move || {
        let _ = sender.send(());
    };
    let sampler = Sampler::start(provider.clone(), watch, "farm", after, || {});
    rounds.recv().await.unwrap();
    let accepted = async || -> usize {
        let answer = provider.send(None, Request::get(&format!("http://{}", address(0)), "/accepted", INTERVAL)).await.unwrap();
        String::from_utf8(answer.body).unwrap().parse().unwrap()
    };
    let (opened, began) = (accepted().await, cpu("self"));
    for _ in 0..ROUNDS {
        rounds.recv().await.unwrap();
        bare.round();
    }
    let bare = tokio::task::spawn_blocking(|| bare.used()).await.unwrap();
    let used = cpu("self") - began - bare;
    let ages = idleconn_operator::decide::adaptive::signal::Ages { most: 20_000, young: 0 };
    let signal = sampler.signal(95, ages, idleconn_operator::clock::now().as_millisecond());
    let idleconn_operator::decide::adaptive::signal::Signal::Fresh(reading) = signal else { panic!("no signal") };
    let now = accepted().await;
    println!(
        "  {} idle connections, {} opened while measuring; {} nodes answered; memory {} MiB, at most {} MiB",
        provider.idle(),
        now - opened,
        reading.fresh,
        memory().0 / 1024,
        memory().1 / 1024
    );
    assert_eq!(now, opened, "connections are kept");
    assert!(provider.idle() <= u64::from(NODES), "and are no more than the nodes");
    (for_a_thousand(used), for_a_thousand(bare))
}

fn main() {
    if std::env::args().any(|argument| argument == "--serve") {
        return serve();
    }
    // `cargo test --benches` only checks that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let farm = Farm::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut missed = Vec::new();
    for (path, bytes, most, most_times) in PAGES {
        println!("{NODES} nodes, pages of {} KB, every {INTERVAL:?}:", bytes / 1000);
        let (ours, bare) = runtime.block_on(sampled(path));
        if memory().1 > MAX_MEMORY {
            missed.push(format!("memory of {path}"));
        }
        let times = ours / bare;
        println!("  {ours:.3} s of CPU for a thousand samples, a bare reader {bare:.3} s, {times:.2} times");
        if ours > most {
            missed.push(format!("CPU of {path}"));
        }
        if times > most_times {
            missed.push(format!("CPU of {path} in times of the bare reader's"));
        }
    }
    drop(farm);
    assert!(missed.is_empty(), "missed: {missed:?}");
}
