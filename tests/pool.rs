//! The pool under the worst load: a thousand providers whose servers refuse, reset, hang, respond slowly or send nonsense. The
//! test is a separate process, because it checks the open files and the memory of the process.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use idleconn_operator::pool::{Pool, PoolSettings, Request, Tally};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const PROVIDERS: usize = 1_000;
/// Requests to each provider every ten seconds for ten minutes.
const ROUNDS: usize = 60;
/// Number of rounds after which the process has allocated what it keeps.
const WARM: usize = 20;
/// Memory that the allocator may keep beyond that, in KiB; thirty bytes for each request would be more. The memory in use was the
/// same after each round, 2.4 MiB (heaptrack).
const KEPT: usize = 3 * 1024;
const MAX_SOCKETS: u32 = 2;
/// Concurrent requests to each provider: more than it has connections.
const CONCURRENCY: usize = 3;
/// Concurrent requests to all providers together.
const IN_ALL: usize = 192;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of requests to servers that never answer.
const SHORT: Duration = Duration::from_millis(30);

/// Behavior of a server.
#[derive(Clone, Copy)]
enum Habit {
    Answers,
    Resets,
    Hangs,
    Dawdles,
    ClosesAfterwards,
    SpeaksNoTls,
}

const HABITS: [Habit; 6] =
    [Habit::Answers, Habit::Resets, Habit::Hangs, Habit::Dawdles, Habit::ClosesAfterwards, Habit::SpeaksNoTls];

/// Starts a server. Returns its address, the number of its connections, and the highest such number.
async fn serve(habit: Habit) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if matches!(habit, Habit::SpeaksNoTls) { "https" } else { "http" };
    let address = format!("{scheme}://{}", listener.local_addr().unwrap());
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = act(stream, habit).await;
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

async fn act(mut stream: TcpStream, habit: Habit) -> std::io::Result<()> {
    let mut asked = Vec::new();
    loop {
        asked.clear();
        while !asked.ends_with(b"\r\n\r\n") && !matches!(habit, Habit::SpeaksNoTls) {
            if stream.read_buf(&mut asked).await? == 0 {
                return Ok(());
            }
        }
        match habit {
            Habit::Answers => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?,
            Habit::ClosesAfterwards => {
                return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
            Habit::Resets => return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
            // The server waits until the client has closed the connection.
            Habit::Hangs => while stream.read_buf(&mut asked).await? > 0 {},
            Habit::Dawdles => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nslow").await?;
                while stream.read_buf(&mut asked).await? > 0 {}
            }
            Habit::SpeaksNoTls => return stream.write_all(b"220 mail.example.com ESMTP\r\n").await,
        }
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns the resident memory of this process in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_providers_that_fail_in_every_way_cost_no_more_after_ten_minutes_than_after_two() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = PoolSettings { max_sockets: MAX_SOCKETS, max_free_sockets: 1, ..PoolSettings::default() };
    let pool = Pool::new(settings);
    let mut servers = Vec::new();
    for habit in HABITS {
        servers.push(serve(habit).await);
    }
    // Address on which no server listens.
    let refuses = format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
    let addresses: Vec<String> = servers.iter().map(|(address, _)| address.clone()).chain([refuses]).collect();
    let of = |n: usize| addresses[n % addresses.len()].clone();
    let (mut answered, mut failed) = (0, 0);
    let mut costs = Vec::new();
    for round in 0..ROUNDS {
        let asked = stream::iter(0..PROVIDERS).map(|n| {
            let (provider, address) = (pool.provider(&format!("p/{n}")), of(n));
            async move {
                let hangs =
                    HABITS.get(n % (HABITS.len() + 1)).is_some_and(|habit| matches!(habit, Habit::Hangs | Habit::Dawdles));
                let patience = if hangs { SHORT } else { TIMEOUT };
                let one = || provider.send(None, Request::get(&address, "/", patience));
                futures::future::join_all((0..CONCURRENCY).map(|_| one())).await
            }
        });
        let answers: Vec<_> = asked.buffer_unordered(IN_ALL / CONCURRENCY).collect().await;
        for answer in answers.iter().flatten() {
            if answer.is_ok() { answered += 1 } else { failed += 1 }
        }
        if round + 1 == WARM || round + 1 == ROUNDS {
            // Connections may still be open on the side of the servers; they do not belong to the pool.
            let patience = tokio::time::Instant::now() + Duration::from_secs(20);
            while servers.iter().map(|(_, open)| open.load(Ordering::SeqCst)).sum::<usize>() > idle(&pool) {
                assert!(tokio::time::Instant::now() < patience, "connections are left open that the pool does not know of");
                tokio::task::yield_now().await;
            }
            costs.push((open_files(), resident()));
        }
    }
    let all = pool.statistics();
    assert_eq!(all.len(), PROVIDERS, "each over one protocol");
    for one in &all {
        let Tally { connecting, active, waiting, peak, opened, .. } = one.tally;
        assert_eq!((connecting, active, waiting), (0, 0, 0), "{} forgot a request: {:?}", one.provider, one.tally);
        assert!(peak <= u64::from(MAX_SOCKETS), "{} had {peak} connections", one.provider);
        let closed: u64 = idleconn_operator::pool::Closed::ALL.into_iter().map(|why| one.tally.closed(why)).sum();
        assert_eq!(opened, closed + one.tally.idle, "{}", one.provider);
    }
    assert_eq!(answered + failed, PROVIDERS * CONCURRENCY * ROUNDS, "no request was forgotten");
    let answers = |n: &usize| {
        HABITS.get(n % addresses.len()).is_some_and(|habit| matches!(habit, Habit::Answers | Habit::ClosesAfterwards))
    };
    let expected = (0..PROVIDERS).filter(answers).count() * CONCURRENCY * ROUNDS;
    assert_eq!(
        answered, expected,
        "every answer was received, although half of the servers close connections that were to be reused"
    );
    let [(files, memory), (files_later, memory_later)] = costs[..] else { panic!("two looks") };
    println!(
        "{answered} answered, {failed} not; files {files} after {WARM} rounds and {files_later} after {ROUNDS}, memory {} and {} MiB",
        memory / 1024,
        memory_later / 1024
    );
    assert!(files_later <= files + 8, "{files} files, then {files_later}");
    assert!(memory_later <= memory + KEPT, "{memory} KiB, then {memory_later}");
    for n in 0..PROVIDERS {
        pool.forget(&format!("p/{n}"));
    }
    assert!(pool.statistics().is_empty());
}

fn idle(pool: &Pool) -> usize {
    usize::try_from(pool.statistics().iter().map(|one| one.tally.idle).sum::<u64>()).unwrap()
}
