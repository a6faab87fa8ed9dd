//! Samples all nodes of one policy repeatedly, with jitter and timeouts.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{
    lanes,
    page::{Framing, Probe},
    prometheus,
    watch::{Source, Watch, refused, silence},
};
use crate::{
    clock,
    decide::adaptive::signal::{self, Ages, Measure, NoSample, NodeSample, Signal},
    pass::world::SampledNode,
    pool::{Error, Provider, Request},
};

/// Pages up to this size are read to the end, which keeps the connection. Larger ones are read only as far as needed.
const LARGE: usize = 8 * 1024 * 1024;
/// Most MiB of a page that are read; a larger page is not a metrics page.
const MAX_PAGE: usize = 256;

/// The last sample of each node. The sampler continues to write it.
pub type Samples = Arc<Mutex<BTreeMap<String, NodeSample>>>;

/// Samples one policy's nodes until it is dropped.
pub struct Sampler {
    watch: watch::Sender<Arc<Watch>>,
    soon: Arc<tokio::sync::Notify>,
    samples: Samples,
    task: JoinHandle<()>,
}

impl Sampler {
    /// Starts the sampling. `after` is called after every round, and `panicked` after one that panicked.
    #[must_use]
    pub fn start(
        provider: Provider,
        watch: Watch,
        seed: &str,
        after: impl Fn() + Send + Sync + 'static,
        panicked: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let samples = Samples::default();
        let (sender, receiver) = watch::channel(Arc::new(watch));
        let soon = Arc::new(tokio::sync::Notify::new());
        let mut random =
            fastrand::Rng::with_seed(seed.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into())));
        let (results, woken) = (samples.clone(), soon.clone());
        let task = tokio::spawn(async move {
            loop {
                let watch = receiver.borrow().clone();
                let began = Instant::now();
                let looked = std::panic::AssertUnwindSafe(async {
                    round(&provider, &watch, &results).await;
                    after();
                });
                if looked.catch_unwind().await.is_err() {
                    // The next round may succeed. Until then the samples age, and the status reports their age.
                    panicked();
                }
                // Shorten the interval by up to a tenth, so that policies do not run in step.
                let interval = watch.interval.mul_f64(0.9 + 0.1 * random.f64());
                tokio::select! {
                    () = tokio::time::sleep_until(began + interval) => {}
                    () = woken.notified() => {}
                }
            }
        });
        Self { watch: sender, soon, samples, task }
    }

    /// Replaces what is watched, from the next round on.
    pub fn set(&self, watch: Watch) {
        let old = self.watch.borrow().clone();
        if old.key != watch.key {
            self.samples.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let known: BTreeSet<&SampledNode> = old.nodes.iter().collect();
        let news = old.key != watch.key || watch.nodes.iter().any(|node| !known.contains(node));
        self.watch.send_replace(Arc::new(watch));
        if news {
            self.soon.notify_one();
        }
    }

    /// Starts an additional round after `wait`, because a window ends then.
    pub fn ask_in(&self, wait: Duration) {
        let soon = self.soon.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            soon.notify_one();
        });
    }

    /// The last samples, shared with the sampler.
    #[must_use]
    pub fn samples(&self) -> Samples {
        self.samples.clone()
    }

    /// The signal of the current samples; see [`signal::read`].
    #[must_use]
    pub fn signal(&self, percentile: u32, ages: Ages, now: i64) -> Signal {
        let watch = self.watch.borrow();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        signal::read(&samples, watch.nodes.iter().map(|node| node.name.as_str()), percentile, ages, now)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn round(provider: &Provider, watch: &Watch, samples: &Samples) {
    let look = |n: usize| async move {
        if let Some(node) = watch.nodes.get(n) {
            sample(provider, watch, node, samples).await;
        }
    };
    lanes::sample_all(watch.nodes.len(), watch.interval, look).await;
    let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
    // Each node has an entry now. More entries are of nodes that are gone.
    if samples.len() > watch.nodes.len() {
        let names: BTreeSet<&str> = watch.nodes.iter().map(|node| node.name.as_str()).collect();
        samples.retain(|name, _| names.contains(name.as_str()));
    }
}

async fn sample(provider: &Provider, watch: &Watch, node: &SampledNode, samples: &Samples) {
    let answer = match &watch.source {
        Source::Nodes(probe) => page(provider, watch, node, probe).await,
        Source::Prometheus { query, threshold } => prometheus::ask(provider, watch, node, query, *threshold).await,
    };
    let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
    let sample = samples.entry(node.name.clone()).or_default();
    match answer {
        Ok(measure) => sample.record(clock::now().as_millisecond(), measure),
        Err(gap) => sample.gap = Some(gap),
    }
}

async fn page(provider: &Provider, watch: &Watch, node: &SampledNode, probe: &Probe) -> Result<Measure, NoSample> {
    if node.address.is_empty() {
        return Err(NoSample::Unreachable);
    }
    let address = match &watch.permit {
        _ if !node.named => Some(Cow::Borrowed(&*node.address)),
        Some(permit) => permit(node.clone()).await.map(Cow::Owned),
        None => None,
    };
    let Some(address) = address else { return Err(NoSample::NotPermitted) };
    let mut answer = scrape(provider, watch, node, &address, probe).await;
    if matches!(answer, Err(Error::Broken(_))) {
        // A reload of the server may have closed the connection of the first request.
        answer = scrape(provider, watch, node, &address, probe).await;
    }
    answer.unwrap_or_else(|error| Err(silence(&error)))
}

async fn scrape(
    provider: &Provider,
    watch: &Watch,
    node: &SampledNode,
    address: &str,
    probe: &Probe,
) -> Result<Result<Measure, NoSample>, Error> {
    let (mut scan, mut length) = (probe.scan(), 0usize);
    let mut request = Request { most: MAX_PAGE * 1024 * 1024, ..Request::get(address, &node.path, watch.timeout()) };
    request.headers.push(("accept-encoding".into(), "identity".into()));
    let mut is_enough = false;
    let mut sink = |piece: &[u8]| {
        scan.push(piece);
        length = length.saturating_add(piece.len());
        is_enough = length > LARGE && scan.is_complete();
        if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let response = provider.read_until(watch.ca.as_deref(), request, &mut sink).await?;
    if response.status != 200 {
        return Ok(Err(refused(response.status, &response.headers, &format!("{address}{}", node.path))));
    }
    let said = |name: http::HeaderName| {
        response.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
    };
    if !matches!(said(CONTENT_ENCODING).trim(), "" | "identity") {
        return Ok(Err(NoSample::Encoded));
    }
    let kind = said(CONTENT_TYPE);
    let framing = Framing {
        is_whole: is_enough || response.headers.contains_key(CONTENT_LENGTH) || said(TRANSFER_ENCODING).contains("chunked"),
        is_open_metrics: kind.starts_with("application/openmetrics-text"),
    };
    if is_enough {
        scan.stop();
    }
    Ok(match scan.end(framing) {
        Err(NoSample::NoSeries) if kind.starts_with("text/html") => Err(NoSample::WebPage),
        told => told,
    })
}
