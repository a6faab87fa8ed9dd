//! Explores every order of answers and every fault within a bound, from a policy that was just created until it is gone.
//!
//! Between passes, a state is the cluster, the operator's memory and the time. Within a pass, a state is what the pass has
//! asked and was answered; it is reached again by making the pass again with the same answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use idleconn_operator::{
    api::policy::TargetType,
    decide::originals::Log,
    pass::{
        self, Error, Next,
        cache::{PolicyCache, wait},
        claims::{Registry, Scope},
        world::Moment,
    },
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    cluster::{Answer, Cluster, Effect, NAMESPACE, NODES, Pass, Phase, Policy, Scene},
    world::{Ports, RESYNC},
};

/// Times in a state that are further apart than this are only in order: it is more than `restart.timeout`, and than the second to
/// which the operator knows the time of a change (milliseconds).
const MAX_GAP: i64 = 2_000;
/// Failures after which the back-off grows no further.
const MAX_BACK_OFF: u32 = 10;
/// Longest pause after a batch that can matter.
const MAX_PAUSE: Duration = Duration::from_secs(10);
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
    /// The other policy has a whole pass meanwhile, in which nothing fails. It counts as a surprise.
    Other,
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
    /// The process of the next pod begins.
    Start(usize),
    /// The next pod is ready.
    Join(usize),
    Suspend,
    Resume,
    Edit,
    Delete,
    /// Another policy for the same nodes appears, an older one or a younger one.
    Compete {
        older: bool,
    },
    DeleteOther,
}

impl Env {
    fn all() -> impl Iterator<Item = Self> {
        let of = [Self::Down, Self::Up, Self::Restart, Self::Foreign, Self::Start, Self::Join];
        let nodes = (0..NODES).flat_map(move |node| of.map(|env| env(node)));
        let compete = [true, false].map(|older| Self::Compete { older });
        nodes.chain([Self::Suspend, Self::Resume, Self::Edit, Self::Delete, Self::DeleteOther]).chain(compete)
    }

    fn is_possible(self, cluster: &Cluster) -> bool {
        let is = |scene| cluster.scene == scene;
        let (limits, waves, restarts, rivals) = (is(Scene::Limits), is(Scene::Waves), is(Scene::Restarts), is(Scene::Rivals));
        let is_governed = cluster.policy.exists && !cluster.policy.deleted;
        match self {
            // The scene of rivals has one node.
            Self::Down(node) => cluster.nodes[node].is_written() && (!rivals || node == 0),
            Self::Up(node) => !cluster.nodes[node].up,
            Self::Restart(node) => !rivals && cluster.nodes[node].is_written(),
            // What another client changes is explored in the scene of limits.
            Self::Foreign(_) => limits || waves,
            Self::Start(node) => cluster.nodes[node].phase() == Some(Phase::Terminating),
            Self::Join(node) => cluster.nodes[node].phase() == Some(Phase::Starting),
            Self::Suspend => restarts && is_governed && !cluster.policy.suspended,
            Self::Resume => is_governed && cluster.policy.suspended,
            Self::Edit => !rivals && is_governed && cluster.policy.spec + 1 < cluster.scene.specs().len(),
            Self::Delete => is_governed,
            Self::Compete { .. } => rivals && is_governed && cluster.rival.is_none(),
            Self::DeleteOther => cluster.other().is_some_and(|other| !other.deleted),
        }
    }

    fn happen(self, cluster: &mut Cluster) {
        match self {
            Self::Down(node) => cluster.nodes[node].up = false,
            Self::Up(node) => cluster.come_up(node),
            Self::Restart(node) if cluster.scene == Scene::Restarts => cluster.nodes[node].restart_in_pod(cluster.now),
            Self::Restart(node) => cluster.restart(node),
            Self::Foreign(node) => cluster.nodes[node].changed_by_another(),
            Self::Start(node) => cluster.nodes[node].start(),
            Self::Join(node) => cluster.join(node),
            Self::Suspend => cluster.suspend(true),
            Self::Resume => cluster.suspend(false),
            Self::Edit => cluster.edit(),
            Self::Delete => cluster.delete(),
            Self::Compete { older } => cluster.compete(older),
            Self::DeleteOther => {
                cluster.turn();
                cluster.delete();
                cluster.turn();
            }
        }
    }

    /// Whether it is explored within a pass, too, and not only between two: where what the pass has read matters.
    const fn may_interrupt(self, scene: Scene) -> bool {
        match scene {
            Scene::Limits => true,
            Scene::Waves => matches!(self, Self::Down(_) | Self::Edit | Self::Delete),
            // An edit stands for each change of the spec, and a pod that becomes ready for one whose process begins.
            Scene::Restarts => matches!(self, Self::Down(_) | Self::Join(_) | Self::Edit | Self::Delete),
            // What else happens to a node is explored in the scene of limits.
            Scene::Rivals => matches!(self, Self::Delete | Self::DeleteOther | Self::Compete { .. }),
        }
    }

    /// Whether a person changes the policy, so that a pass follows.
    const fn changes_policy(self) -> bool {
        matches!(self, Self::Suspend | Self::Resume | Self::Edit | Self::Delete)
    }

    /// Whether a person changes the other policy, so that a pass of it follows.
    const fn changes_other(self) -> bool {
        matches!(self, Self::Compete { .. } | Self::DeleteOther)
    }

    /// Whether it belongs to the life of a policy, after everything has settled.
    const fn is_life(self) -> bool {
        matches!(self, Self::Edit | Self::Delete) || self.changes_other()
    }

    /// What ends a fault, or what follows from a restart, is no surprise.
    const fn cost(self) -> u32 {
        if matches!(self, Self::Up(_) | Self::Start(_) | Self::Join(_) | Self::Resume) { 0 } else { 1 }
    }
}

/// What the operator has of one policy between its passes.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub memory: PolicyCache,
    /// Time until the next pass; `None` if it follows only a change.
    pub due: Option<Duration>,
    /// Whether its last pass left nothing to do until the next resync.
    rests: bool,
    /// What it claims, if its target was looked for.
    claim: Option<BTreeSet<String>>,
    /// The originals that other policies may take over; `None` if this process has not read them yet.
    saved: Option<Log>,
}

impl Known {
    /// A policy of which nothing is known, with a pass that is due at once.
    fn nothing() -> Self {
        Self { due: Some(Duration::ZERO), ..Self::default() }
    }

    /// A pass follows a change.
    fn poke(&mut self) {
        (self.due, self.rests) = (Some(self.due.map_or(NOTICED, |due| due.min(NOTICED))), false);
    }

    /// What an answer tells the registry.
    fn learn(&mut self, answer: &Answer, scene: Scene) {
        match answer {
            Answer::Found(Ok(())) => self.claim = Some(scene.units().into_iter().collect()),
            Answer::Originals(Ok(log)) => self.saved = Some(log.clone()),
            _ => {}
        }
    }

    /// Without a look at the target, a policy claims the units whose originals it has saved.
    fn keep_claim(&mut self) {
        let saved = &self.saved;
        self.claim.get_or_insert_with(|| saved.iter().flat_map(|log| log.units().keys().cloned()).collect());
    }
}

/// A state between passes.
#[derive(Clone)]
pub struct Between {
    pub cluster: Cluster,
    pub known: Known,
    /// The same of the other policy.
    pub other: Known,
    pub time: Duration,
    /// Faults and surprises that may still happen.
    pub budget: u32,
}

impl Between {
    fn key(&self) -> (u64, u64) {
        let mut cluster = self.cluster.clone().ago();
        let mut told = Vec::new();
        for policy in [Some(&mut cluster.policy), cluster.rival.as_deref_mut()].into_iter().flatten() {
            told.push((policy.untold(), policy.has_abandoned()));
            forget_names(policy);
        }
        let known = [&self.known, &self.other].map(|known| relative(known, Moment(self.time)));
        let text = format!("{cluster:?}{known:?}{told:?}{}", self.budget);
        hashed(&if self.cluster.scene.has_time() { without_dates(&text) } else { text })
    }

    /// When a pass that is due begins: with a clock, at a whole second, so that fractions of a second distinguish no states.
    fn begins(&self, due: Duration) -> Duration {
        let at = self.time + due;
        let has_time = self.cluster.scene.has_time();
        if has_time { Duration::from_secs(at.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)) } else { at }
    }

    /// Lets the time go on.
    fn go_on(&mut self, due: Duration) {
        let before = self.time;
        self.time = self.begins(due);
        self.other.due = self.other.due.map(|due| due.saturating_sub(self.time.saturating_sub(before)));
        self.cluster.set_time(self.time);
    }

    /// Nothing is left to do until the next resync.
    fn is_settled(&self) -> bool {
        let rests = |known: &Known| known.rests || known.due.is_none();
        self.unfinished().is_none() && rests(&self.known) && rests(&self.other)
    }

    /// Why this is not what the policies ask for; `None` if it is.
    fn unfinished(&self) -> Option<String> {
        self.cluster.unfinished().or_else(|| self.turned().cluster.unfinished())
    }

    /// The same state, with the other policy in the place of the first.
    fn turned(&self) -> Self {
        let mut state = self.clone();
        if state.cluster.rival.is_some() {
            state.cluster.turn();
            std::mem::swap(&mut state.known, &mut state.other);
        }
        state
    }

    /// The beginning of each pass that may come next, and whether it is one of the other policy. The pass that is due first comes
    /// next; of two that follow a change, each may.
    fn turns(&self) -> Vec<(bool, Self)> {
        let first = [self.known.due, self.other.due].into_iter().flatten().min();
        let begin = |mut state: Self| {
            let due = state.known.due.filter(|due| Some(*due) == first || *due <= NOTICED)?;
            state.go_on(due);
            Some(state)
        };
        let own = begin(self.clone()).map(|state| (false, state));
        let other = self.cluster.other().and_then(|_| begin(self.turned())).map(|state| (true, state));
        own.into_iter().chain(other).collect()
    }

    /// Whether an older policy has claimed the nodes.
    fn is_outranked(&self) -> bool {
        let is_older = |other: &Policy| other.created < self.cluster.policy.created;
        self.cluster.other().is_some_and(is_older) && self.other.claim.as_ref().is_some_and(|claim| !claim.is_empty())
    }

    /// The controller notices that a policy has changed, or is gone.
    fn notice(&mut self, poked: bool, wakes: bool) {
        if poked {
            self.known.poke();
        }
        if wakes || !self.cluster.policy.exists {
            self.other.poke();
        }
        if !self.cluster.policy.exists {
            self.known = Known::default();
        }
        if self.cluster.other().is_none() {
            self.other = Known::default();
        }
    }

    /// The registry as the process has it.
    fn registry(&self) -> Arc<Registry> {
        let registry = Registry::default();
        let kind = TargetType::Caddy;
        let policies = [(Some(&self.cluster.policy), &self.known), (self.cluster.rival.as_deref(), &self.other)];
        let policies = policies.into_iter().filter_map(|(policy, known)| Some((policy.filter(|policy| policy.exists)?, known)));
        let policies: Vec<_> = policies.map(|(policy, known)| (policy.claimant(), known)).collect();
        for (claimant, known) in &policies {
            registry.listed(claimant, kind, false);
            if let Some(saved) = &known.saved {
                registry.saved(claimant, saved);
            }
            if let Some(claim) = &known.claim {
                registry.claim_places(claimant, kind, claim.clone());
            }
        }
        for (claimant, _) in &policies {
            registry.must_wait(claimant, &Scope::Places(kind));
        }
        Arc::new(registry)
    }
}

/// Numbers and names of Events decide nothing, and the next pass reads the policy again. The budget of restarts of a day has room for
/// all changes of a life.
fn forget_names(policy: &mut Policy) {
    (policy.version, policy.events, policy.programmed) = (0, BTreeSet::new(), BTreeSet::new());
    let Some(status) = policy.status.as_mut() else { return };
    let control = status.control.iter_mut();
    control.for_each(|control| (control.events, control.restart.begun) = (0, Vec::new()));
    status.conditions.iter_mut().for_each(|condition| condition.last_transition_time = Time(Timestamp::UNIX_EPOCH));
}

/// The memory with times relative to now: what matters is how long something has lasted, and how long it will.
fn relative(known: &Known, now: Moment) -> Known {
    let mut known = known.clone();
    let memory = &mut known.memory;
    memory.logged = BTreeMap::new();
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
    // An end that is longer ago than the pause is over.
    memory.waves.ended = memory.waves.ended.map(|ended| ago(ended).min(Moment(MAX_PAUSE)));
    known
}

/// The text of a state with its times in their order, and the gaps between them up to [`MAX_GAP`]. An uptime counts up to that,
/// too: a process that restarts reports a smaller one.
fn without_dates(text: &str) -> String {
    let times = times_in(text);
    let (mut last, mut passed, mut relative) = (None::<i64>, 0, BTreeMap::new());
    for time in times.iter().map(|(_, time)| *time).collect::<BTreeSet<_>>() {
        passed += last.map_or(0, |last| (time - last).min(MAX_GAP));
        last = Some(time);
        relative.insert(time, passed);
    }
    let (mut plain, mut end) = (String::with_capacity(text.len()), 0);
    for (place, time) in times {
        plain.push_str(&text[end..place.start]);
        plain.push_str(&relative[&time].to_string());
        end = place.end;
    }
    plain.push_str(&text[end..]);
    let mut parts = plain.split("uptime: ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |told, part| {
        let (ran, rest) = part.split_once(',').unwrap_or((part, ""));
        let ran = ran.trim_end_matches('s').parse::<f64>().unwrap_or(0.0).min(2.0);
        told + &ran.to_string() + rest
    })
}

/// Where the text of a state has times, and which (Unix milliseconds): in seconds or milliseconds, they begin with 17 in this age.
fn times_in(text: &str) -> Vec<(Range<usize>, i64)> {
    let is_start = |at: usize| at == 0 || !text.as_bytes()[at - 1].is_ascii_alphanumeric();
    let time_at = |(at, _): (usize, &str)| {
        let length = text[at..].bytes().take_while(u8::is_ascii_digit).count();
        let number = text[at..at + length].parse::<i64>().ok().filter(|_| is_start(at))?;
        match length {
            10 => Some((at..at + length, number * 1000)),
            13 => Some((at..at + length, number)),
            _ => None,
        }
    };
    text.match_indices("17").filter_map(time_at).collect()
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
    /// What is known of both policies; the memory of the first is in use.
    known: Known,
    other: Known,
    began: Duration,
    time: Duration,
    budget: u32,
    /// Hash of what was asked and answered: of each node, and of everything else.
    lanes: [u64; NODES + 1],
    /// A change of the policy that the next pass follows.
    poked: bool,
    /// The other policy gets a pass after this one.
    wakes: bool,
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
        let mut path = path.iter();
        Self::choose(from, from.registry(), |_, _| path.next().copied())
    }

    /// Makes a pass with these answers, and goes on while only one thing can happen.
    fn along(from: &Between, path: &mut Vec<Choice>) -> Self {
        let mut at = 0;
        Self::choose(from, from.registry(), |run, open| {
            if at == path.len() {
                let choices = run.choices(open);
                path.extend((choices.len() == 1).then(|| choices[0]));
            }
            at += 1;
            path.get(at - 1).copied()
        })
    }

    /// Makes a pass, up to where no choice is made.
    fn choose(
        from: &Between,
        registry: Arc<Registry>,
        mut choice: impl FnMut(&Self, &[(u64, Effect)]) -> Option<Choice>,
    ) -> Self {
        let mut run = Self::begin(from);
        let ports = Ports::at(from.cluster.scene, from.time, registry);
        let mut memory = from.known.memory.clone();
        let mut finished = None;
        {
            let mut work = Box::pin(pass::visit(&ports, &mut memory));
            let mut context = Context::from_waker(Waker::noop());
            loop {
                if let Poll::Ready(next) = work.as_mut().poll(&mut context) {
                    finished = Some(next);
                    break;
                }
                let open = ports.open();
                match choice(&run, &open) {
                    Some(choice) if !run.follow(&ports, choice) => return run,
                    Some(_) => {}
                    None => {
                        run.end = End::Open(open);
                        break;
                    }
                }
            }
        }
        run.time = ports.time();
        run.wakes |= ports.has_woken_others();
        if let Some(next) = finished {
            run.end = End::Finished { memory: Box::new(memory), next, gone: ports.is_gone() };
        }
        run
    }

    fn begin(from: &Between) -> Self {
        let mut cluster = from.cluster.clone();
        cluster.pass = Pass { outranked: from.is_outranked(), ..Pass::default() };
        Self {
            cluster,
            known: from.known.clone(),
            other: from.other.clone(),
            began: from.time,
            time: from.time,
            budget: from.budget,
            lanes: [0; NODES + 1],
            poked: false,
            wakes: false,
            interrupted: false,
            broken: None,
            end: End::Crashed,
        }
    }

    /// Lets a choice happen. Returns false if the process has ended.
    fn follow(&mut self, ports: &Ports, choice: Choice) -> bool {
        let open = ports.open();
        self.cluster.set_time(ports.time());
        match choice {
            Choice::Do(n) => {
                let (number, effect) = &open[n];
                let (answer, broken) = self.cluster.carry_out(effect);
                self.record(effect, "done", broken);
                self.known.learn(&answer, self.cluster.scene);
                if let Answer::AllOriginals(Ok(all)) = &answer {
                    let log = self.cluster.other().and_then(|other| all.get(other.name).cloned().flatten());
                    self.other.saved.get_or_insert_with(|| log.unwrap_or_default());
                }
                ports.answer(*number, answer);
            }
            Choice::Other => self.other_pass(ports),
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
                self.cluster.crash();
                self.time = ports.time();
                self.end = End::Crashed;
                return false;
            }
            Choice::Env(env) => {
                self.budget -= env.cost();
                self.poked |= env.changes_policy();
                env.happen(&mut self.cluster);
                if env.changes_other() {
                    self.wakes = true;
                    if let Some(other) = self.cluster.other() {
                        ports.registry.listed(&other.claimant(), TargetType::Caddy, false);
                    } else {
                        self.poked = true;
                        self.forget_other(ports);
                    }
                }
            }
        }
        true
    }

    /// The other policy has a whole pass in the middle of this one.
    fn other_pass(&mut self, ports: &Ports) {
        let state = Between {
            cluster: self.cluster.clone(),
            known: Known { due: None, ..self.known.clone() },
            other: self.other.clone(),
            time: ports.time(),
            budget: 0,
        };
        let pass = std::mem::take(&mut self.cluster.pass);
        self.budget -= 1;
        let run = Self::choose(&state.turned(), ports.registry.clone(), |run, open| Some(run.undisturbed(open)));
        self.broken = self.broken.take().or_else(|| run.broken.clone());
        let after = run.after().turned();
        ports.set_time(after.time);
        self.poked |= after.known.due.is_some();
        (self.cluster, self.other) = (after.cluster, after.other);
        self.forget_other(ports);
        self.cluster.pass = pass;
        let text = format!("{:?}{:?}", self.lanes[NODES], self.other);
        self.lanes[NODES] = hashed(&text).0;
    }

    /// The registry forgets the other policy if it is gone.
    fn forget_other(&self, ports: &Ports) {
        if let Some(gone) = self.cluster.rival.as_ref().filter(|rival| !rival.exists) {
            ports.registry.forget(NAMESPACE, gone.name, None);
        }
    }

    /// The next choice of a pass in which every request is answered, in the order of the requests.
    fn undisturbed(&self, open: &[(u64, Effect)]) -> Choice {
        match open.iter().position(|(_, effect)| is_request(effect)) {
            Some(n) => Choice::Do(n),
            None if self.cluster.policy.deleted && !self.interrupted => Choice::Interrupt,
            None => Choice::Tick,
        }
    }

    fn record(&mut self, effect: &Effect, how: &str, broken: Option<String>) {
        let lane = effect.node().unwrap_or(NODES);
        let mut hasher = DefaultHasher::new();
        // A read shows what the node holds then; the answers of the others follow from the request and the cluster.
        let seen = effect.node().map(|node| self.cluster.shows(node));
        format!("{} {how} {effect:?} {seen:?}", self.lanes[lane]).hash(&mut hasher);
        self.lanes[lane] = hasher.finish();
        if self.broken.is_none() {
            self.broken = broken;
        }
    }

    fn key(&self, open: &[(u64, Effect)]) -> (u64, u64) {
        let open: Vec<_> = open.iter().map(|(_, effect)| effect).collect();
        let flags = (self.poked, self.wakes, self.interrupted, self.budget);
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
        if self.cluster.policy.deleted && !self.interrupted {
            choices.push(Choice::Interrupt);
        }
        if self.budget > 0 && self.cluster.other().is_some() && (self.wakes || self.other.due.is_some_and(|due| due <= NOTICED)) {
            choices.push(Choice::Other);
        }
        let may_happen =
            |env: &Env| env.cost() <= self.budget && env.may_interrupt(self.cluster.scene) && env.is_possible(&self.cluster);
        choices.extend(Env::all().filter(may_happen).map(Choice::Env));
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
        let Self { mut cluster, mut known, mut other, began, time, budget, poked, wakes, end, .. } = self;
        cluster.pass = Pass::default();
        cluster.set_time(time);
        other.due = other.due.map(|due| due.saturating_sub(time.saturating_sub(began)));
        let crashed = matches!(end, End::Crashed);
        let (memory, due) = match end {
            End::Open(_) => unreachable!("the pass has ended"),
            End::Crashed => {
                known = Known::nothing();
                other = cluster.other().map(|_| Known::nothing()).unwrap_or_default();
                (PolicyCache::default(), Some(Duration::ZERO))
            }
            End::Finished { gone: true, .. } => (PolicyCache::default(), None),
            End::Finished { memory, next: Ok(Next::After(wait)), .. } => (*memory, Some(wait)),
            End::Finished { memory, next: Ok(Next::Changed), .. } => (*memory, None),
            End::Finished { memory, next: Err(Error::Cancelled), .. } => (*memory, Some(pass::DUE_SLACK)),
            End::Finished { mut memory, next: Err(_), .. } => {
                memory.failures = memory.failures.saturating_add(1);
                let due = wait(memory.failures - 1);
                known.keep_claim();
                (*memory, Some(due))
            }
        };
        known.saved = memory.originals.clone().or(known.saved);
        if cluster.policy.deleted && !crashed {
            known.keep_claim();
        }
        (known.memory, known.due, known.rests) = (memory, due, due.is_none_or(|due| due >= RESYNC));
        if known.rests && other.rests {
            // Their passes alternate; how long one is after the other does not matter.
            other.due = other.due.map(|_| RESYNC / 2);
        }
        let mut state = Between { cluster, known, other, time, budget };
        state.notice(poked, wakes);
        state
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
    step: Step,
}

/// What led to a state. It is put in words only in a counterexample.
enum Step {
    First,
    Happens(Env),
    Pass(Box<Between>, Vec<Choice>),
}

impl Step {
    fn told(&self) -> Vec<String> {
        match self {
            Self::First => Vec::new(),
            Self::Happens(env) => vec![format!("{env:?}").to_lowercase()],
            Self::Pass(from, path) => told(from, path),
        }
    }
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
    pub fn explore(scene: Scene, budget: u32, most: Duration) -> Result<Explored, Counterexample> {
        let began = Instant::now();
        let first = Between {
            cluster: Cluster::of(scene),
            known: Known::nothing(),
            other: Known::default(),
            time: Duration::ZERO,
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
        explorer.found(None, || Step::First, first)?;
        while let Some((at, state)) = explorer.waiting.pop_front() {
            if Instant::now() >= explorer.until {
                explorer.explored.complete = false;
                break;
            }
            explorer.surprises(at, &state)?;
            explorer.passes(at, &state)?;
        }
        explorer.explored.between = explorer.known.len();
        explorer.explored.took = began.elapsed();
        Ok(explorer.explored)
    }

    fn found(&mut self, from: Option<usize>, step: impl FnOnce() -> Step, state: Between) -> Result<(), Counterexample> {
        if !self.known.insert(state.key()) {
            return Ok(());
        }
        self.entries.push(Entry { from, step: step() });
        let at = self.entries.len() - 1;
        // The last deletion has to end also if a node never comes back.
        let is_deleted = state.cluster.policy.deleted && state.cluster.other().is_none_or(|other| other.deleted);
        let lost = is_deleted && state.cluster.nodes.iter().any(|node| !node.up);
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
            parts.push(entry.step.told());
            at = entry.from;
        }
        Counterexample { rule, steps: parts.into_iter().rev().flatten().collect() }
    }

    /// What people and servers do between passes.
    fn surprises(&mut self, at: usize, state: &Between) -> Result<(), Counterexample> {
        for env in Env::all().filter(|env| env.is_possible(&state.cluster)) {
            // What a person does after everything has settled is the life of a policy, and no surprise.
            let free = env.is_life() && state.is_settled();
            let cost = if free { 0 } else { env.cost() };
            if cost > state.budget {
                continue;
            }
            let mut next = state.clone();
            next.budget -= cost;
            // It happens right before the next pass.
            next.cluster.set_time(state.begins(state.known.due.unwrap_or_default()));
            env.happen(&mut next.cluster);
            next.cluster.set_time(state.time);
            next.notice(env.changes_policy(), env.changes_other());
            self.found(Some(at), || Step::Happens(env), next)?;
        }
        Ok(())
    }

    /// Every course of the next pass.
    fn passes(&mut self, at: usize, state: &Between) -> Result<(), Counterexample> {
        for (of_other, from) in state.turns() {
            let mut seen = HashSet::new();
            let mut paths = VecDeque::from([Vec::new()]);
            while let Some(mut path) = paths.pop_front() {
                let run = Run::along(&from, &mut path);
                self.explored.within += 1;
                if let Some(rule) = &run.broken {
                    return Err(self.counterexample(Some(at), told(&from, &path), rule.clone()));
                }
                let End::Open(open) = &run.end else {
                    let after = if of_other { run.after().turned() } else { run.after() };
                    self.found(Some(at), || Step::Pass(Box::new(from.clone()), path), after)?;
                    continue;
                };
                if !seen.insert(run.key(open)) {
                    continue;
                }
                for choice in run.choices(open) {
                    paths.push_back(path.iter().copied().chain([choice]).collect());
                }
            }
        }
        Ok(())
    }

    /// Number of requests until everything is as the policies ask and nothing is written any more, if no further fault
    /// happens. `recover`: nodes that are down come up again.
    fn end(&mut self, state: &Between, recover: bool) -> Result<usize, (String, Vec<String>)> {
        let mut state = state.clone();
        if recover {
            (0..NODES).for_each(|node| state.cluster.come_up(node));
        }
        let (mut passed, mut steps, mut requests, mut total, mut quiet) = (Vec::new(), Vec::new(), Vec::new(), 0, 0);
        let most = state.cluster.scene.most_passes();
        for _ in 0..most {
            let key = state.key();
            if let Some(rest) = self.ends.get(&key) {
                total += rest;
                return Ok(self.note(&passed, &requests, total));
            }
            passed.push(key);
            requests.push(total);
            let Some((of_other, mut from)) = state.turns().into_iter().min_by_key(|(_, from)| from.time) else {
                return match state.unfinished() {
                    None => Ok(self.note(&passed, &requests, total)),
                    Some(why) => Err((format!("nothing more happens, and {why}"), all_told(&steps))),
                };
            };
            from.cluster.come_back();
            let mut path = Vec::new();
            let run = Run::choose(&from, from.registry(), |run, open| {
                path.push(run.undisturbed(open));
                assert!(path.len() < 500, "a pass without an end");
                path.last().copied()
            });
            total += path.len();
            steps.push((from, path));
            if let Some(rule) = run.broken {
                return Err((rule, all_told(&steps)));
            }
            quiet = if run.cluster.pass.writes == 0 { quiet + 1 } else { 0 };
            state = if of_other { run.after().turned() } else { run.after() };
            // A pass of each policy wrote nothing.
            if quiet > usize::from(state.other.due.is_some()) && state.is_settled() {
                return Ok(self.note(&passed, &requests, total));
            }
        }
        let why = state.unfinished().unwrap_or_else(|| "something is written in each pass".into());
        Err((format!("after {most} passes without a fault: {why}"), all_told(&steps)))
    }

    fn note(&mut self, passed: &[(u64, u64)], requests: &[usize], total: usize) -> usize {
        self.ends.extend(passed.iter().zip(requests).map(|(key, before)| (*key, total - before)));
        total
    }
}

/// The choices in words.
fn told(from: &Between, path: &[Choice]) -> Vec<String> {
    let mut steps = vec![format!("a pass of {} begins at {:?}", from.cluster.policy.name, from.time)];
    for (n, choice) in path.iter().enumerate() {
        let End::Open(open) = Run::make(from, &path[..n]).end else { break };
        steps.push(match choice {
            Choice::Do(n) => open[*n].1.name(),
            Choice::Lose(n) => format!("{}: carried out, and the answer is lost", open[*n].1.name()),
            Choice::Drop(n) => format!("{}: not carried out", open[*n].1.name()),
            Choice::Tick => "the time goes on".into(),
            Choice::Other => "the other policy has a whole pass".into(),
            Choice::Interrupt => "the controller sees the deletion".into(),
            Choice::Crash(None) => "the process ends".into(),
            Choice::Crash(Some(n)) => format!("the process ends, and this is carried out: {}", open[*n].1.name()),
            Choice::Env(env) => format!("{env:?}").to_lowercase(),
        });
    }
    steps
}

fn all_told(passes: &[(Between, Vec<Choice>)]) -> Vec<String> {
    passes.iter().flat_map(|(from, path)| told(from, path)).collect()
}
