//! Explores every order of answers and every fault within a bound, from a policy that was just created until it is gone.
//!
//! Between passes, a state is the cluster, the operator's memory and the time. Within a pass, a state is what the pass has
//! asked and was answered; it is reached again by making the pass again with the same answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use idleconn_operator::pass::{
    self, Error, Next,
    cache::{PolicyCache, wait},
    world::Moment,
};

use super::{
    cluster::{Answer, Cluster, Effect, NODES, SPECS},
    world::{Ports, RESYNC},
};

/// Passes without a fault after which everything is as the policy asks.
const MAX_PASSES: usize = 12;
/// Failures after which the back-off grows no further.
const MAX_BACK_OFF: u32 = 10;
/// Time from a change of the policy to the pass that follows it.
const NOTICED: Duration = Duration::from_millis(10);

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The request is carried out and answered.
    Do(usize),
    /// The request is carried out, and its answer is lost.
    Lose(usize),
    /// The request is not carried out, and no answer arrives.
    Drop(usize),
    /// The time goes on to the next time that the pass waits for.
    Tick,
    /// The controller sees that the policy is being deleted.
    Interrupt,
    /// The process ends. One of its open requests may still be carried out.
    Crash(Option<usize>),
    /// Something happens outside the operator.
    Env(Env),
}

/// What happens outside the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Env {
    Down(usize),
    Up(usize),
    Restart(usize),
    Foreign(usize),
    Edit,
    Delete,
}

impl Env {
    fn all() -> impl Iterator<Item = Self> {
        let nodes = (0..NODES).flat_map(|node| [Self::Down(node), Self::Up(node), Self::Restart(node), Self::Foreign(node)]);
        nodes.chain([Self::Edit, Self::Delete])
    }

    fn is_possible(self, cluster: &Cluster) -> bool {
        match self {
            Self::Down(node) => cluster.nodes[node].up,
            Self::Up(node) => !cluster.nodes[node].up,
            Self::Restart(_) | Self::Foreign(_) => true,
            Self::Edit => cluster.exists && !cluster.deleted && cluster.spec + 1 < SPECS.len(),
            Self::Delete => cluster.exists && !cluster.deleted,
        }
    }

    fn happen(self, cluster: &mut Cluster) {
        match self {
            Self::Down(node) => cluster.nodes[node].up = false,
            Self::Up(node) => cluster.nodes[node].up = true,
            Self::Restart(node) => cluster.nodes[node].restart(),
            Self::Foreign(node) => cluster.nodes[node].changed_by_another(),
            Self::Edit => cluster.edit(),
            Self::Delete => cluster.delete(),
        }
    }

    /// A node that comes up again ends a fault.
    const fn cost(self) -> u32 {
        if matches!(self, Self::Up(_)) { 0 } else { 1 }
    }
}

/// A state between passes.
#[derive(Clone)]
pub struct Between {
    pub cluster: Cluster,
    pub memory: PolicyCache,
    pub time: Duration,
    /// Time until the next pass; `None` if it follows only a change.
    pub due: Option<Duration>,
    /// Faults and surprises that may still happen.
    pub budget: u32,
}

impl Between {
    fn key(&self) -> (u64, u64) {
        // The next pass reads the policy again; numbers and names of Events, and logged messages, decide nothing.
        let mut cluster = Cluster { version: 0, events: BTreeSet::new(), programmed: BTreeSet::new(), ..self.cluster.clone() };
        if let Some(control) = cluster.status.as_mut().and_then(|status| status.control.as_mut()) {
            control.events = 0;
        }
        let told = (self.cluster.untold(), self.cluster.has_abandoned());
        let memory = relative(&self.memory, Moment(self.time));
        let text = format!("{cluster:?}{memory:?}{told:?}{:?}{}", self.due, self.budget);
        hashed(&text)
    }

    /// Nothing is left to do until the next resync.
    fn is_settled(&self) -> bool {
        self.cluster.unfinished().is_none() && self.due.is_none_or(|due| due >= RESYNC)
    }
}

/// The memory with times relative to now: what matters is how long something has lasted, and how long it will.
fn relative(memory: &PolicyCache, now: Moment) -> PolicyCache {
    let mut memory = PolicyCache { logged: BTreeMap::new(), ..memory.clone() };
    let ahead = |due: Moment| Moment(due.since(now));
    let ago = |since: Moment| Moment(now.since(since));
    for failing in memory.failing.values_mut() {
        (failing.due, failing.times) = (ahead(failing.due), failing.times.min(MAX_BACK_OFF));
    }
    for unwritten in memory.unwritten.values_mut() {
        (unwritten.due, unwritten.times) = (unwritten.due.map(ahead), unwritten.times.min(MAX_BACK_OFF));
    }
    memory.departed.values_mut().for_each(|since| *since = ago(*since));
    memory.leaving = memory.leaving.map(ago);
    memory
}

fn hashed(text: &str) -> (u64, u64) {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, text).hash(&mut hasher);
        hasher.finish()
    };
    (half(1), half(2))
}

/// A pass, up to some point.
struct Run {
    cluster: Cluster,
    time: Duration,
    budget: u32,
    /// Hash of what was asked and answered: of each node, and of everything else.
    lanes: [u64; NODES + 1],
    /// A change of the policy that the next pass follows.
    poked: bool,
    interrupted: bool,
    broken: Option<String>,
    end: End,
}

enum End {
    /// The pass waits for these.
    Open(Vec<(u64, Effect)>),
    Finished {
        memory: Box<PolicyCache>,
        next: Result<Next, Error>,
        gone: bool,
    },
    Crashed,
}

impl Run {
    /// Makes a pass with these answers.
    fn make(from: &Between, path: &[Choice]) -> Self {
        let mut cluster = from.cluster.clone();
        cluster.writes = 0;
        cluster.nodes.iter_mut().for_each(|node| node.seen = None);
        let mut run = Self {
            cluster,
            time: from.time,
            budget: from.budget,
            lanes: [0; NODES + 1],
            poked: false,
            interrupted: false,
            broken: None,
            end: End::Crashed,
        };
        let ports = Ports::at(from.time);
        let mut memory = from.memory.clone();
        let mut finished = None;
        {
            let mut work = Box::pin(pass::visit(&ports, &mut memory));
            let mut context = Context::from_waker(Waker::noop());
            for choice in path.iter().map(Some).chain([None]) {
                if let Poll::Ready(next) = work.as_mut().poll(&mut context) {
                    finished = Some(next);
                    break;
                }
                match choice {
                    Some(choice) if !run.follow(&ports, *choice) => return run,
                    Some(_) => {}
                    None => run.end = End::Open(ports.open()),
                }
            }
        }
        run.time = ports.time();
        if let Some(next) = finished {
            run.end = End::Finished { memory: Box::new(memory), next, gone: ports.is_gone() };
        }
        run
    }

    /// Lets a choice happen. Returns false if the process has ended.
    fn follow(&mut self, ports: &Ports, choice: Choice) -> bool {
        let open = ports.open();
        match choice {
            Choice::Do(n) => {
                let (number, effect) = &open[n];
                let (answer, broken) = self.cluster.carry_out(effect);
                self.record(effect, "done", broken);
                ports.answer(*number, answer);
            }
            Choice::Lose(n) => {
                let (number, effect) = &open[n];
                let broken = self.cluster.carry_out(effect).1;
                self.record(effect, "lost", broken);
                self.budget -= 1;
                ports.answer(*number, Cluster::no_answer(effect));
            }
            Choice::Drop(n) => {
                let (number, effect) = &open[n];
                self.record(effect, "dropped", None);
                self.budget -= 1;
                ports.answer(*number, Cluster::no_answer(effect));
            }
            Choice::Tick => {
                let waits = open.iter().filter_map(|(number, effect)| match effect {
                    Effect::Wait(until) => Some((*until, *number)),
                    _ => None,
                });
                let (until, number) = waits.min().expect("a wait");
                if open.iter().any(|(_, effect)| is_request(effect)) {
                    self.budget -= 1;
                }
                ports.set_time(until.max(ports.time()));
                ports.answer(number, Answer::Waited);
            }
            Choice::Interrupt => {
                self.interrupted = true;
                ports.interrupt();
                let waiting = open.iter().find(|(_, effect)| *effect == Effect::Interrupted);
                if let Some((number, _)) = waiting {
                    ports.answer(*number, Answer::Interrupted);
                }
            }
            Choice::Crash(carried) => {
                self.budget -= 1;
                if let Some(n) = carried {
                    self.broken = self.broken.take().or(self.cluster.carry_out(&open[n].1).1);
                }
                self.time = ports.time();
                self.end = End::Crashed;
                return false;
            }
            Choice::Env(env) => {
                self.budget -= env.cost();
                self.poked |= matches!(env, Env::Edit | Env::Delete);
                env.happen(&mut self.cluster);
            }
        }
        true
    }

    fn record(&mut self, effect: &Effect, how: &str, broken: Option<String>) {
        let lane = effect.node().unwrap_or(NODES);
        let mut hasher = DefaultHasher::new();
        // A read shows what the node holds then; the answers of the others follow from the request and the cluster.
        let seen = effect.node().map(|node| (&self.cluster.nodes[node].values, self.cluster.nodes[node].up));
        format!("{} {how} {effect:?} {seen:?}", self.lanes[lane]).hash(&mut hasher);
        self.lanes[lane] = hasher.finish();
        if self.broken.is_none() {
            self.broken = broken;
        }
    }

    fn key(&self, open: &[(u64, Effect)]) -> (u64, u64) {
        let open: Vec<_> = open.iter().map(|(_, effect)| effect).collect();
        let flags = (self.poked, self.interrupted, self.budget);
        hashed(&format!("{:?}{:?}{:?}{open:?}{flags:?}", self.cluster, self.lanes, self.time))
    }

    /// What may happen now.
    fn choices(&self, open: &[(u64, Effect)]) -> Vec<Choice> {
        let mut choices = Vec::new();
        let requests = || open.iter().enumerate().filter(|(_, (_, effect))| is_request(effect));
        // Requests to different nodes do not depend on each other: without a fault in between, their order does not matter.
        let orders = if self.budget > 0 { usize::MAX } else { 1 };
        choices.extend(requests().take(orders).map(|(n, _)| Choice::Do(n)));
        let waits = open.iter().any(|(_, effect)| matches!(effect, Effect::Wait(_)));
        if waits && (requests().next().is_none() || self.budget > 0) {
            choices.push(Choice::Tick);
        }
        if self.cluster.deleted && !self.interrupted {
            choices.push(Choice::Interrupt);
        }
        choices.extend(Env::all().filter(|env| env.cost() <= self.budget && env.is_possible(&self.cluster)).map(Choice::Env));
        if self.budget > 0 {
            for (n, (_, effect)) in requests() {
                choices.push(Choice::Drop(n));
                if effect.changes() {
                    choices.push(Choice::Lose(n));
                    choices.push(Choice::Crash(Some(n)));
                }
            }
            choices.push(Choice::Crash(None));
        }
        choices
    }

    /// The state after the pass.
    fn after(self) -> Between {
        let Self { mut cluster, time, budget, poked, end, .. } = self;
        cluster.writes = 0;
        cluster.nodes.iter_mut().for_each(|node| node.seen = None);
        let (memory, due) = match end {
            End::Open(_) => unreachable!("the pass has ended"),
            End::Crashed => (PolicyCache::default(), Some(Duration::ZERO)),
            End::Finished { gone: true, .. } => (PolicyCache::default(), None),
            End::Finished { memory, next: Ok(Next::After(wait)), .. } => (*memory, Some(wait)),
            End::Finished { memory, next: Ok(Next::Changed), .. } => (*memory, None),
            End::Finished { memory, next: Err(Error::Cancelled), .. } => (*memory, Some(pass::DUE_SLACK)),
            End::Finished { mut memory, next: Err(_), .. } => {
                memory.failures = memory.failures.saturating_add(1);
                let due = wait(memory.failures - 1);
                (*memory, Some(due))
            }
        };
        let due = if poked { Some(due.map_or(NOTICED, |due| due.min(NOTICED))) } else { due };
        let due = due.filter(|_| cluster.exists);
        Between { cluster, memory, time, due, budget }
    }
}

fn is_request(effect: &Effect) -> bool {
    !matches!(effect, Effect::Wait(_) | Effect::Interrupted)
}

/// A rule was broken.
pub struct Counterexample {
    pub rule: String,
    pub steps: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (after {} steps)", self.rule, self.steps.len())?;
        self.steps.iter().enumerate().try_for_each(|(n, step)| writeln!(f, "{:>4}  {step}", n + 1))
    }
}

/// What was explored.
#[derive(Default)]
pub struct Explored {
    /// States between passes.
    pub between: usize,
    /// States within passes.
    pub within: usize,
    /// Most requests from a state to the end of the work, without further faults.
    pub longest: usize,
    /// Whether no state within the bound was left out.
    pub complete: bool,
    pub took: Duration,
}

struct Entry {
    from: Option<usize>,
    steps: Vec<String>,
}

/// A search, breadth first.
pub struct Explorer {
    entries: Vec<Entry>,
    known: HashSet<(u64, u64)>,
    waiting: VecDeque<(usize, Between)>,
    /// States that end well, with the number of requests until then.
    ends: HashMap<(u64, u64), usize>,
    until: Instant,
    explored: Explored,
}

impl Explorer {
    /// Explores the life of a policy with this many faults and surprises, for at most this time.
    pub fn explore(budget: u32, most: Duration) -> Result<Explored, Counterexample> {
        let began = Instant::now();
        let first = Between {
            cluster: Cluster::new(),
            memory: PolicyCache::default(),
            time: Duration::ZERO,
            due: Some(Duration::ZERO),
            budget,
        };
        let mut explorer = Self {
            entries: Vec::new(),
            known: HashSet::new(),
            waiting: VecDeque::new(),
            ends: HashMap::new(),
            until: began + most,
            explored: Explored { complete: true, ..Explored::default() },
        };
        explorer.found(None, Vec::new(), first)?;
        while let Some((at, state)) = explorer.waiting.pop_front() {
            if Instant::now() >= explorer.until {
                explorer.explored.complete = false;
                break;
            }
            explorer.surprises(at, &state)?;
            explorer.passes(at, &state)?;
        }
        if std::env::var("IDLECONN_DUMP").is_ok() {
            eprintln!("{} waiting", explorer.waiting.len());
            for (n, (_, state)) in explorer.waiting.iter().enumerate().filter(|(n, _)| n % (explorer.waiting.len() / 40 + 1) == 0)
            {
                eprintln!(
                    "== {n} budget {} due {:?} time {:?}\n{:?}\n{:?}",
                    state.budget,
                    state.due,
                    state.time,
                    Cluster { events: BTreeSet::new(), ..state.cluster.clone() },
                    state.memory
                );
            }
        }
        explorer.explored.between = explorer.known.len();
        explorer.explored.took = began.elapsed();
        Ok(explorer.explored)
    }

    fn found(&mut self, from: Option<usize>, steps: Vec<String>, state: Between) -> Result<(), Counterexample> {
        if !self.known.insert(state.key()) {
            return Ok(());
        }
        self.entries.push(Entry { from, steps });
        let at = self.entries.len() - 1;
        // A deletion has to end also if a node never comes back.
        let lost = state.cluster.deleted && state.cluster.nodes.iter().any(|node| !node.up);
        for recover in if lost { &[true, false][..] } else { &[true] } {
            match self.end(&state, *recover) {
                Ok(requests) => self.explored.longest = self.explored.longest.max(requests),
                Err((rule, steps)) => return Err(self.counterexample(Some(at), steps, rule)),
            }
        }
        self.waiting.push_back((at, state));
        Ok(())
    }

    fn counterexample(&self, mut at: Option<usize>, last: Vec<String>, rule: String) -> Counterexample {
        let mut parts = vec![last];
        while let Some(entry) = at.map(|at| &self.entries[at]) {
            parts.push(entry.steps.clone());
            at = entry.from;
        }
        Counterexample { rule, steps: parts.into_iter().rev().flatten().collect() }
    }

    /// What people and servers do between passes.
    fn surprises(&mut self, at: usize, state: &Between) -> Result<(), Counterexample> {
        for env in Env::all().filter(|env| env.is_possible(&state.cluster)) {
            // What a person does after everything has settled is the life of a policy, and no surprise.
            let free = matches!(env, Env::Edit | Env::Delete) && state.is_settled();
            let cost = if free { 0 } else { env.cost() };
            if cost > state.budget {
                continue;
            }
            let mut next = state.clone();
            next.budget -= cost;
            env.happen(&mut next.cluster);
            if matches!(env, Env::Edit | Env::Delete) {
                next.due = next.due.map_or(Some(NOTICED), |due| Some(due.min(NOTICED))).filter(|_| next.cluster.exists);
            }
            self.found(Some(at), vec![format!("{env:?}").to_lowercase()], next)?;
        }
        Ok(())
    }

    /// Every course of the next pass.
    fn passes(&mut self, at: usize, state: &Between) -> Result<(), Counterexample> {
        let Some(due) = state.due else { return Ok(()) };
        let from = Between { time: state.time + due, ..state.clone() };
        let mut seen = HashSet::new();
        let mut paths = VecDeque::from([Vec::new()]);
        while let Some(path) = paths.pop_front() {
            let run = Run::make(&from, &path);
            self.explored.within += 1;
            if let Some(rule) = &run.broken {
                return Err(self.counterexample(Some(at), told(&from, &path), rule.clone()));
            }
            let End::Open(open) = &run.end else {
                let steps = told(&from, &path);
                self.found(Some(at), steps, run.after())?;
                continue;
            };
            if !seen.insert(run.key(open)) {
                continue;
            }
            for choice in run.choices(open) {
                paths.push_back(path.iter().copied().chain([choice]).collect());
            }
        }
        Ok(())
    }

    /// Number of requests until everything is as the policy asks and nothing is written any more, if no further fault
    /// happens. `recover`: nodes that are down come up again.
    fn end(&mut self, state: &Between, recover: bool) -> Result<usize, (String, Vec<String>)> {
        let mut state = state.clone();
        state.cluster.nodes.iter_mut().for_each(|node| node.up |= recover);
        let (mut passed, mut steps, mut requests, mut total) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..MAX_PASSES {
            let key = state.key();
            if let Some(rest) = self.ends.get(&key) {
                total += rest;
                return Ok(self.note(&passed, &requests, total));
            }
            passed.push(key);
            requests.push(total);
            let Some(due) = state.due else {
                return match state.cluster.unfinished() {
                    None => Ok(self.note(&passed, &requests, total)),
                    Some(why) => Err((format!("nothing more happens, and {why}"), steps)),
                };
            };
            state.time += due;
            let path = undisturbed(&state);
            let run = Run::make(&state, &path);
            steps.extend(told(&state, &path));
            total += path.len();
            if let Some(rule) = run.broken {
                return Err((rule, steps));
            }
            let quiet = run.cluster.writes == 0;
            state = run.after();
            if quiet && state.cluster.unfinished().is_none() && state.due.is_none_or(|due| due >= RESYNC) {
                return Ok(self.note(&passed, &requests, total));
            }
        }
        let why = state.cluster.unfinished().unwrap_or_else(|| "something is written in each pass".into());
        Err((format!("after {MAX_PASSES} passes without a fault: {why}"), steps))
    }

    fn note(&mut self, passed: &[(u64, u64)], requests: &[usize], total: usize) -> usize {
        self.ends.extend(passed.iter().zip(requests).map(|(key, before)| (*key, total - before)));
        total
    }
}

/// The course of a pass in which every request is answered, in the order of the requests.
fn undisturbed(from: &Between) -> Vec<Choice> {
    let mut path = Vec::new();
    loop {
        let run = Run::make(from, &path);
        let End::Open(open) = &run.end else { return path };
        let request = open.iter().position(|(_, effect)| is_request(effect));
        let choice = match request {
            Some(n) => Choice::Do(n),
            None if run.cluster.deleted && !run.interrupted => Choice::Interrupt,
            None => Choice::Tick,
        };
        path.push(choice);
        assert!(path.len() < 500, "a pass without an end");
    }
}

/// The choices in words.
fn told(from: &Between, path: &[Choice]) -> Vec<String> {
    let mut steps = vec![format!("a pass begins at {:?}", from.time)];
    for (n, choice) in path.iter().enumerate() {
        let End::Open(open) = Run::make(from, &path[..n]).end else { break };
        steps.push(match choice {
            Choice::Do(n) => open[*n].1.name(),
            Choice::Lose(n) => format!("{}: carried out, and the answer is lost", open[*n].1.name()),
            Choice::Drop(n) => format!("{}: not carried out", open[*n].1.name()),
            Choice::Tick => "the time goes on".into(),
            Choice::Interrupt => "the controller sees the deletion".into(),
            Choice::Crash(None) => "the process ends".into(),
            Choice::Crash(Some(n)) => format!("the process ends, and this is carried out: {}", open[*n].1.name()),
            Choice::Env(env) => format!("{env:?}").to_lowercase(),
        });
    }
    steps
}
