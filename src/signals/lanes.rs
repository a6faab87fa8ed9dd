//! How many nodes of a policy are sampled at the same time: few while they answer fast, more while the round is late.

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::future::{join, join_all};
use tokio::time::{Instant, sleep, sleep_until};

/// Nodes that are sampled at the same time. More of them cost more time for each, because their pages wait in the kernel.
const FIRST: usize = 8;
/// Nodes that are sampled at the same time in a round that is late.
const MOST: usize = 32;
/// Nodes whose samples are due together.
const GROUP: usize = 32;
/// Time between groups, if the interval is long enough for it. A whole fleet at the same time would be a burst on the operator's
/// CPU limit and on the network. Node by node would wake a thread for each.
const APART: Duration = Duration::from_millis(64);

/// When each node's sample is due.
struct Schedule {
    nodes: usize,
    began: Instant,
    apart: Duration,
}

impl Schedule {
    /// For any number of nodes, half of the interval remains for slow ones.
    fn new(nodes: usize, interval: Duration) -> Self {
        let groups = u32::try_from(nodes.div_ceil(GROUP)).unwrap_or(u32::MAX).max(1);
        Self { nodes, began: Instant::now(), apart: APART.min(interval / 2 / groups) }
    }

    fn due(&self, node: usize) -> Instant {
        self.began + self.apart * u32::try_from(node / GROUP).unwrap_or(u32::MAX)
    }

    /// Whether samples have been due for longer than the time between groups and are not begun; `begun` are.
    fn is_late(&self, begun: usize) -> bool {
        begun < self.nodes && self.due(begun) + self.apart <= Instant::now()
    }
}

/// Calls `sample` for each number below `nodes`, spread over half of the interval.
pub async fn sample_all<F: Future<Output = ()>>(nodes: usize, interval: Duration, sample: impl Fn(usize) -> F) {
    let schedule = &Schedule::new(nodes, interval);
    let (begun, sample) = (&AtomicUsize::new(0), &sample);
    // Each lane samples one node after the other. A future for each node would be a block of kilobytes.
    let lane = || async move {
        loop {
            let node = begun.fetch_add(1, Ordering::Relaxed);
            if node >= nodes {
                return;
            }
            if schedule.due(node) > Instant::now() {
                sleep_until(schedule.due(node)).await;
            }
            sample(node).await;
        }
    };
    let first = join_all((0..FIRST.min(nodes)).map(|_| lane()));
    let more = async {
        while begun.load(Ordering::Relaxed) < nodes {
            sleep(schedule.apart).await;
            if schedule.is_late(begun.load(Ordering::Relaxed)) {
                join_all((FIRST..MOST).map(|_| lane())).await;
            }
        }
    };
    // Both poll all of their lanes whenever one can go on. So a response that arrives meanwhile is read without another wake.
    join(first, more).await;
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Samples nodes that each answer after a time. Returns how often each was sampled, the most at the same time, and the time
    /// that it took.
    async fn sampled(nodes: usize, interval: Duration, answer: Duration) -> (Vec<u32>, usize, Duration) {
        let (counts, open, most) = (RefCell::new(vec![0; nodes]), Cell::new(0), Cell::new(0));
        let began = Instant::now();
        sample_all(nodes, interval, |node| {
            let (counts, open, most) = (&counts, &open, &most);
            async move {
                counts.borrow_mut()[node] += 1;
                open.set(open.get() + 1);
                most.set(most.get().max(open.get()));
                tokio::time::sleep(answer).await;
                open.set(open.get() - 1);
            }
        })
        .await;
        (counts.into_inner(), most.get(), began.elapsed())
    }

    const INTERVAL: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn every_node_is_sampled_once() {
        for nodes in [0, 1, 5, 8, 9, 31, 32, 33, 320, 5_000] {
            for answer in [0, 3, 400] {
                let (counts, ..) = sampled(nodes, INTERVAL, Duration::from_millis(answer)).await;
                assert!(counts.iter().all(|count| *count == 1), "{nodes} nodes that answer after {answer} ms");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_at_a_time_are_enough_while_nodes_answer_fast() {
        let (_, most, took) = sampled(5_000, INTERVAL, Duration::from_millis(5)).await;
        assert_eq!(most, FIRST);
        assert!(took <= INTERVAL / 2 + Duration::from_millis(50), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_of_slow_nodes_grows_to_most_at_a_time() {
        let answer = Duration::from_millis(500);
        let (_, most, took) = sampled(320, INTERVAL, answer).await;
        assert_eq!(most, MOST);
        // With all lanes from the beginning: ten answers one after the other.
        assert!(took <= answer * 10 + APART * 4 + answer, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_node_that_hangs_does_not_delay_the_others() {
        let (done, began) = (Cell::new(0), Instant::now());
        let last = Cell::new(Duration::ZERO);
        sample_all(320, INTERVAL, |node| {
            let (done, last) = (&done, &last);
            async move {
                if node == 0 {
                    return tokio::time::sleep(Duration::from_secs(10)).await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                done.set(done.get() + 1);
                last.set(began.elapsed());
            }
        })
        .await;
        assert_eq!(done.get(), 319);
        assert!(last.get() <= APART * 10, "{:?}", last.get());
    }
}
