//! Waves: which units are written now, where each write closes the idle connections of its unit.
//!
//! A batch is what one pass writes. The next batch begins after a pause, and only if each unit that was written still answers.
//! Whatever another process has written before is taken up from the status: see [`Waves::begin`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::world::Moment;
use crate::{
    api::{LimitValues, status::Update, update::RollingUpdate},
    decide::{Unit, report::update::UpdateProgress},
};

/// Longest pause from the last batch of an update to the first batch of the next, such as a correction or a step of adaptive
/// control that follows an edit: a pause of an hour is meant for the batches of one update.
const MAX_FIRST_PAUSE: Duration = Duration::from_secs(10);

/// The batches of one policy.
#[derive(Clone, Debug, Default)]
pub struct Waves {
    /// The generation of the last pass.
    generation: Option<i64>,
    /// Units of the last pass.
    known: BTreeSet<String>,
    /// Units that have started since, and were not written yet: they have no connections to lose.
    started: BTreeSet<String>,
    /// Time at which the last batch ended.
    pub ended: Option<Moment>,
    /// What the last batch wrote; `None` if this process has written none.
    desired: Option<LimitValues>,
    /// Time from the end of the last batch to the next.
    pause: Duration,
    /// Whether units of the last batch's update still wait.
    continues: bool,
    /// Units that were written and have not answered since, with their names.
    silent: BTreeMap<String, String>,
    /// The pass that is under way, or the last one.
    pass: Batch,
    /// Whether this process has finished a pass.
    is_settled: bool,
}

/// What one pass writes.
#[derive(Clone, Debug, Default)]
struct Batch {
    units: usize,
    written: usize,
    last_write: Option<Moment>,
    /// Names of the units that wait for a later batch.
    waiting: BTreeSet<String>,
    /// When the next units may be written, if not by the end of the last batch.
    next: Option<Moment>,
}

/// A unit that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The unit.
    pub unit: &'a Unit,
    /// Whether its process has restarted since it was last read.
    pub restarted: bool,
    /// Whether it runs twice as many tasks as its threshold: it is the first of its batch, and a stopped wave does not hold it back.
    pub urgent: bool,
    /// Consecutive failed writes: it is behind those that did not fail.
    pub failures: u32,
}

/// Units that may be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Ids of units that have connections to lose, in the order in which they are written.
    pub flushed: Vec<String>,
    /// Ids of units that have just started.
    pub started: Vec<String>,
}

impl Waves {
    /// Begins a pass. `before` is what the status says of an update that is under way.
    ///
    /// A process that has written nothing yet does not know when the last batch ended. It waits for one pause, from now on, if the
    /// status names an update.
    pub fn begin(&mut self, units: &[Unit], generation: Option<i64>, before: Option<&Update>, now: Moment) {
        let is_same = self.generation == generation;
        if units.len() != self.known.len() || !units.iter().all(|unit| self.known.contains(&unit.id)) {
            let ids: BTreeSet<_> = units.iter().map(|unit| unit.id.clone()).collect();
            if is_same && self.is_settled {
                self.started.extend(ids.difference(&self.known).cloned());
            }
            self.known = ids;
        }
        if !is_same {
            // A new version of the policy is a person's new decision.
            self.silent.clear();
        }
        self.continues = is_same && !self.pass.waiting.is_empty();
        if let (Some(before), false, None) = (before, self.is_settled, self.ended) {
            self.ended = Some(now);
            self.continues = before.generation == generation;
            let blocks = |unit: &&Unit| before.generation == generation && before.blocked_by.as_ref() == Some(&unit.name);
            self.silent.extend(units.iter().find(blocks).map(|unit| (unit.id.clone(), unit.name.clone())));
        }
        // The last pass may have ended in the middle.
        self.close(now);
        self.silent.retain(|id, _| self.known.contains(id));
        self.started.retain(|id| self.known.contains(id));
        self.generation = generation;
        self.pass = Batch { units: units.len(), ..Batch::default() };
    }

    /// Whether units have waited for a later batch since the last pass.
    #[must_use]
    pub const fn has_waited(&self) -> bool {
        self.continues
    }

    /// Records a unit that answered. `is_done`: nothing is to be written to it.
    pub fn answered(&mut self, unit: &str, is_done: bool) {
        self.silent.remove(unit);
        if is_done {
            self.started.remove(unit);
        }
    }

    /// An earlier process may have ended after a batch and before it reported it: some units hold what is desired and others do
    /// not. Then the next batch begins after a pause, from now on.
    pub fn found_half_written(&mut self, now: Moment) {
        if !self.is_settled && self.ended.is_none() && self.pass.written == 0 {
            self.ended = Some(now);
            self.continues = true;
        }
    }

    /// Decides which of these units may be written now. `desired` is what they should hold: the first batch of an update does not
    /// wait longer than ten seconds. `may_flush` says how many of a number of writes the whole
    /// operator may still make in this minute, and when it may make more.
    pub fn admit(
        &mut self,
        batches: Option<&RollingUpdate>,
        mut candidates: Vec<Candidate<'_>>,
        desired: &LimitValues,
        now: Moment,
        may_flush: impl FnOnce(usize) -> (usize, Option<Moment>),
    ) -> Admitted {
        let has_started = |candidate: &Candidate<'_>| candidate.restarted || self.started.contains(&candidate.unit.id);
        let started = candidates.extract_if(.., |candidate| has_started(candidate)).map(|one| one.unit.id.clone()).collect();
        candidates.sort_by_key(|one| (!one.urgent, one.failures, &one.unit.name));
        let (mut admitted, mut later): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
        self.pause = batches.and_then(|batches| batches.pause.get()).unwrap_or_default();
        if !self.continues || self.desired.as_ref().is_some_and(|last| last != desired) {
            self.pause = self.pause.min(MAX_FIRST_PAUSE);
        }
        let room = batches.map_or(usize::MAX, |batches| self.room(batches, now));
        let is_stopped = batches.is_some() && self.is_stopped();
        for candidate in candidates {
            let is_next = admitted.len() < room && (candidate.urgent || !is_stopped);
            if is_next { &mut admitted } else { &mut later }.push(candidate);
        }
        let (granted, next) = if admitted.is_empty() { (0, None) } else { may_flush(admitted.len()) };
        later.extend(admitted.drain(granted.min(admitted.len())..));
        if !admitted.is_empty() {
            self.desired = Some(desired.clone());
        }
        self.pass.written += admitted.len();
        self.pass.next = self.pass.next.max(next);
        self.pass.waiting.extend(later.iter().map(|one| one.unit.name.clone()));
        Admitted { flushed: admitted.iter().map(|one| one.unit.id.clone()).collect(), started }
    }

    /// How many more units the batch of this pass may have.
    fn room(&self, batches: &RollingUpdate, now: Moment) -> usize {
        let is_over = self.ended.is_none_or(|ended| now.since(ended) >= self.pause);
        if is_over { batches.max_nodes.of(self.pass.units).saturating_sub(self.pass.written) } else { 0 }
    }

    /// Whether an update is stopped until this unit answers: then it is read in each pass, whatever its back-off.
    #[must_use]
    pub fn wait_for(&self, unit: &str) -> bool {
        self.continues && self.silent.contains_key(unit)
    }

    /// Whether a unit has not answered since it was written.
    fn is_stopped(&self) -> bool {
        !self.silent.is_empty()
    }

    /// Records a write, and whether the unit answered after it.
    pub fn written(&mut self, unit: &Unit, answers: bool, now: Moment) {
        self.pass.last_write = Some(now);
        if answers {
            self.started.remove(&unit.id);
        } else {
            self.silent.insert(unit.id.clone(), unit.name.clone());
        }
    }

    /// Ends a pass.
    pub fn end(&mut self) {
        self.is_settled = true;
        if let Some(last) = self.pass.last_write {
            self.close(last);
        }
    }

    /// Ends the batch. A write of which no result was recorded ended at this time at the latest.
    fn close(&mut self, now: Moment) {
        if std::mem::take(&mut self.pass.written) > 0 {
            self.ended = self.pass.last_write.take().or(Some(now));
        }
    }

    /// When the next batch may begin; `None` if no unit waits, or if only an answer can continue the wave.
    #[must_use]
    pub fn next(&self, batches: Option<&RollingUpdate>) -> Option<Moment> {
        if self.pass.waiting.is_empty() {
            return None;
        }
        let paused = self.ended.filter(|_| batches.is_some()).map(|ended| ended + self.pause);
        if batches.is_some() && self.is_stopped() { None } else { Some(paused.max(self.pass.next).unwrap_or_default()) }
    }

    /// Whether units wait for a batch that will come by itself.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        !self.pass.waiting.is_empty() && !self.is_stopped()
    }

    /// Names of the units that wait for a later batch.
    #[must_use]
    pub const fn waiting(&self) -> &BTreeSet<String> {
        &self.pass.waiting
    }

    /// What the status says; `None` if no unit waits.
    #[must_use]
    pub fn progress(&self, batches: Option<&RollingUpdate>) -> Option<UpdateProgress> {
        (!self.pass.waiting.is_empty()).then(|| UpdateProgress {
            waiting: self.pass.waiting.clone(),
            batches: batches.filter(|_| self.pass.next.is_none()).cloned(),
            most: batches.map_or(self.pass.units, |batches| batches.max_nodes.of(self.pass.units)),
            stopped_by: self.silent.values().next().filter(|_| batches.is_some()).cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::{Limit, Value};

    const GENERATION: Option<i64> = Some(3);

    fn unit(number: usize) -> Unit {
        let name = format!("gw-{number:02}");
        Unit { id: format!("id-{number}"), address: format!("http://{name}:2019"), name, role: None }
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn plain(unit: &Unit) -> Candidate<'_> {
        Candidate { unit, restarted: false, urgent: false, failures: 0 }
    }

    /// A fleet of which no unit holds what is desired.
    struct Fleet {
        units: Vec<Unit>,
        waves: Waves,
        batches: Option<RollingUpdate>,
    }

    impl Fleet {
        fn of(units: usize) -> Self {
            Self { units: (0..units).map(unit).collect(), waves: Waves::default(), batches: Some(RollingUpdate::default()) }
        }

        fn begin(&mut self, before: Option<&Update>, now: u64) {
            self.waves.begin(&self.units, GENERATION, before, at(now));
        }

        fn admit<'a>(&mut self, candidates: impl IntoIterator<Item = Candidate<'a>>, now: u64) -> Vec<String> {
            let candidates = candidates.into_iter().collect();
            self.waves.admit(self.batches.as_ref(), candidates, &LimitValues::new(), at(now), |nodes| (nodes, None)).flushed
        }

        /// A pass that finds these units to be written, and in which all of them answer.
        fn pass(&mut self, to_write: &[usize], now: u64) -> Vec<String> {
            self.begin(None, now);
            let units = self.units.clone();
            units.iter().enumerate().for_each(|(number, unit)| self.waves.answered(&unit.id, !to_write.contains(&number)));
            let written = self.admit(to_write.iter().map(|number| plain(&units[*number])), now);
            for unit in units.iter().filter(|unit| written.contains(&unit.id)) {
                self.waves.written(unit, true, at(now));
            }
            self.waves.end();
            written
        }

        fn stopped_by(&self) -> Option<String> {
            self.waves.progress(self.batches.as_ref())?.stopped_by
        }
    }

    #[test]
    fn a_quarter_is_written_and_the_next_quarter_after_the_pause() {
        let mut fleet = Fleet::of(8);
        let all: Vec<_> = (0..8).collect();
        assert_eq!(fleet.pass(&all, 100), ["id-0", "id-1"]);
        assert_eq!(fleet.waves.next(fleet.batches.as_ref()), Some(at(110)));
        assert_eq!(fleet.pass(&all[2..], 109), <[String; 0]>::default(), "the pause is not over");
        assert_eq!(fleet.pass(&all[2..], 110), ["id-2", "id-3"]);
        assert_eq!(fleet.pass(&all[4..], 120), ["id-4", "id-5"]);
        assert!(fleet.waves.is_under_way());
        assert_eq!(fleet.pass(&all[6..], 130), ["id-6", "id-7"]);
        assert!(!fleet.waves.is_under_way());
        assert_eq!((fleet.waves.next(fleet.batches.as_ref()), fleet.waves.progress(fleet.batches.as_ref())), (None, None));
    }

    #[test]
    fn the_groups_of_one_pass_share_its_batch() {
        let mut fleet = Fleet::of(12);
        let units = fleet.units.clone();
        fleet.begin(None, 0);
        assert_eq!(fleet.admit(units[..2].iter().map(plain), 0).len(), 2);
        units[..2].iter().for_each(|unit| fleet.waves.written(unit, true, at(1)));
        assert_eq!(fleet.admit(units[2..12].iter().map(plain), 2).len(), 1, "three of twelve are a quarter");
    }

    #[test]
    fn a_newer_desired_state_waits_for_the_pause_of_the_last_batch() {
        let mut fleet = Fleet::of(4);
        assert_eq!(fleet.pass(&[0, 1, 2, 3], 0), ["id-0"]);
        fleet.waves.begin(&fleet.units, Some(4), None, at(5));
        let units = fleet.units.clone();
        assert_eq!(fleet.admit(units.iter().map(plain), 5), <[String; 0]>::default());
        fleet.waves.begin(&fleet.units, Some(4), None, at(10));
        assert_eq!(fleet.admit(units.iter().map(plain), 10), ["id-0"]);
    }

    #[test]
    fn a_long_pause_holds_back_the_batches_of_one_update_and_not_the_first_of_the_next() {
        let mut fleet = Fleet::of(4);
        let pause = Duration::from_secs(3600).into();
        fleet.batches = Some(RollingUpdate { pause, ..RollingUpdate::default() });
        let units = fleet.units.clone();
        assert_eq!(fleet.pass(&[0, 1, 2, 3], 0), ["id-0"]);
        assert_eq!(fleet.pass(&[1, 2, 3], 3599), <[String; 0]>::default());
        let tighter = LimitValues::from([(Limit::ServerIdleTimeout, Value::Duration(Duration::from_secs(5)))]);
        let mut admit = |now| {
            fleet.begin(None, now);
            let candidates = units.iter().map(plain).collect();
            fleet.waves.admit(fleet.batches.as_ref(), candidates, &tighter, at(now), |nodes| (nodes, None)).flushed
        };
        assert_eq!(admit(9), <[String; 0]>::default());
        assert_eq!(admit(10), ["id-0"]);
    }

    #[test]
    fn a_unit_that_does_not_answer_after_its_write_stops_the_wave_until_it_answers() {
        let mut fleet = Fleet::of(4);
        let units = fleet.units.clone();
        fleet.begin(None, 0);
        assert_eq!(fleet.admit(units.iter().map(plain), 0), ["id-0"]);
        fleet.waves.written(&units[0], false, at(0));
        fleet.waves.end();
        assert_eq!((fleet.stopped_by(), fleet.waves.is_under_way()), (Some("gw-00".into()), false));
        assert_eq!(fleet.waves.next(fleet.batches.as_ref()), None, "only an answer continues it");

        assert!(!fleet.waves.wait_for("id-0"), "the next pass decides whether others wait for it");

        // The others answer, and wait. One with twice as many tasks as its threshold is written.
        fleet.begin(None, 30);
        assert!(fleet.waves.wait_for("id-0") && !fleet.waves.wait_for("id-1"));
        let urgent = Candidate { urgent: true, ..plain(&units[3]) };
        assert_eq!(fleet.admit([plain(&units[1]), plain(&units[2]), urgent], 30), ["id-3"]);
        fleet.waves.written(&units[3], true, at(30));
        fleet.waves.end();
        fleet.begin(None, 60);
        fleet.waves.answered(&units[0].id, true);
        assert_eq!(fleet.admit([plain(&units[1]), plain(&units[2])], 60), ["id-1"]);
    }

    #[test]
    fn a_stopped_wave_continues_with_a_new_version_or_when_the_unit_is_gone() {
        for (generation, units) in [(Some(4), 0..4), (GENERATION, 1..4)] {
            let mut fleet = Fleet::of(4);
            fleet.begin(None, 0);
            fleet.waves.written(&unit(0), false, at(0));
            fleet.waves.end();
            let units: Vec<_> = units.map(unit).collect();
            fleet.waves.begin(&units, generation, None, at(30));
            assert_eq!(fleet.admit([plain(&unit(2))], 30), ["id-2"], "{generation:?}");
        }
    }

    #[test]
    fn a_new_leader_continues_what_the_status_names_after_a_pause() {
        let before = |blocked_by: Option<&str>| Update {
            generation: GENERATION,
            updated_nodes: 1,
            total_nodes: 4,
            blocked_by: blocked_by.map(Into::into),
        };
        let mut fleet = Fleet::of(4);
        let units = fleet.units.clone();
        fleet.begin(Some(&before(None)), 50);
        assert_eq!(fleet.admit([plain(&units[1])], 50), <[String; 0]>::default());
        fleet.waves.end();
        fleet.begin(Some(&before(None)), 60);
        assert_eq!(fleet.admit([plain(&units[1])], 60), ["id-1"]);

        let mut fleet = Fleet::of(4);
        fleet.begin(Some(&before(Some("gw-02"))), 50);
        assert_eq!(fleet.admit([plain(&units[1])], 70), <[String; 0]>::default());
        assert_eq!(fleet.stopped_by().as_deref(), Some("gw-02"));
        fleet.waves.answered("id-2", true);
        assert_eq!(fleet.admit([plain(&units[1])], 71), ["id-1"]);
    }

    #[test]
    fn what_an_earlier_process_wrote_and_did_not_report_counts_as_a_batch() {
        let mut fleet = Fleet::of(4);
        let units = fleet.units.clone();
        fleet.begin(None, 50);
        fleet.waves.found_half_written(at(50));
        assert_eq!(fleet.admit([plain(&units[1])], 50), <[String; 0]>::default());
        assert_eq!(fleet.waves.next(fleet.batches.as_ref()), Some(at(60)));
        // A process that has finished a pass knows what it has written.
        fleet.waves = Waves::default();
        fleet.pass(&[], 0);
        fleet.begin(None, 50);
        fleet.waves.found_half_written(at(50));
        assert_eq!(fleet.admit([plain(&units[1])], 50), ["id-1"]);
    }

    #[test]
    fn a_unit_that_has_just_started_is_written_at_once_and_takes_no_place() {
        let mut fleet = Fleet::of(4);
        fleet.pass(&[0, 1, 2, 3], 0);
        fleet.units.push(unit(9));
        let units = fleet.units.clone();
        fleet.begin(None, 1);
        let restarted = Candidate { restarted: true, ..plain(&units[2]) };
        let candidates = vec![plain(&units[1]), restarted, plain(&units[4])];
        let admitted =
            fleet.waves.admit(fleet.batches.as_ref(), candidates.clone(), &LimitValues::new(), at(1), |nodes| (nodes, None));
        assert_eq!(admitted, Admitted { flushed: Vec::new(), started: vec!["id-2".into(), "id-9".into()] });
        fleet.waves.written(&units[4], true, at(1));
        fleet.waves.end();
        fleet.begin(None, 2);
        let admitted =
            fleet.waves.admit(fleet.batches.as_ref(), vec![plain(&units[4])], &LimitValues::new(), at(2), |nodes| (nodes, None));
        assert_eq!(admitted.started, <[String; 0]>::default(), "it was written once, so it may have connections now");
    }

    #[test]
    fn a_server_that_joins_by_an_edit_has_not_just_started() {
        let mut fleet = Fleet::of(4);
        fleet.pass(&[], 0);
        fleet.units.push(unit(9));
        fleet.waves.begin(&fleet.units, Some(4), None, at(1));
        let admitted =
            fleet.waves.admit(fleet.batches.as_ref(), vec![plain(&unit(9))], &LimitValues::new(), at(1), |nodes| (nodes, None));
        assert_eq!(admitted, Admitted { flushed: vec!["id-9".into()], started: Vec::new() });
    }

    #[test]
    fn the_urgent_are_first_and_those_that_failed_last() {
        let mut fleet = Fleet::of(8);
        let units = fleet.units.clone();
        fleet.begin(None, 0);
        let failed = Candidate { failures: 2, ..plain(&units[0]) };
        let urgent = Candidate { urgent: true, ..plain(&units[7]) };
        assert_eq!(fleet.admit([failed, plain(&units[1]), urgent], 0), ["id-7", "id-1"]);
    }

    #[test]
    fn all_at_once_waits_only_for_the_cluster() {
        let mut fleet = Fleet { batches: None, ..Fleet::of(8) };
        let units = fleet.units.clone();
        fleet.begin(None, 0);
        let admitted = fleet.waves.admit(None, units.iter().map(plain).collect(), &LimitValues::new(), at(0), |nodes| {
            assert_eq!(nodes, 8);
            (3, Some(at(20)))
        });
        assert_eq!(admitted.flushed.len(), 3);
        fleet.waves.end();
        assert_eq!(fleet.waves.next(None), Some(at(20)));
        let progress = fleet.waves.progress(None).unwrap();
        assert_eq!((progress.waiting.len(), progress.stopped_by), (5, None));
    }

    proptest! {
        /// Whatever happens between the passes, no batch has more than a quarter, and none begins before its time.
        #[test]
        fn no_ten_seconds_have_more_than_a_batch(
            units in 1usize..40,
            passes in prop::collection::vec((0u64..15, prop::collection::vec(any::<bool>(), 40), 0i64..3), 1..40),
        ) {
            let mut waves = Waves::default();
            let units: Vec<_> = (0..units).map(unit).collect();
            let batches = RollingUpdate::default();
            let (mut now, mut written) = (100, Vec::new());
            for (later, answers, generation) in passes {
                now += later;
                waves.begin(&units, Some(generation), None, at(now));
                let answered: Vec<_> = units.iter().zip(&answers).filter(|(_, answers)| **answers).map(|(unit, _)| unit).collect();
                for unit in &answered {
                    waves.answered(&unit.id, false);
                }
                let admitted = waves.admit(Some(&batches), answered.iter().map(|unit| plain(unit)).collect(), &LimitValues::new(), at(now), |n| (n, None));
                for unit in units.iter().filter(|unit| admitted.flushed.contains(&unit.id)) {
                    waves.written(unit, true, at(now));
                    written.push(now);
                }
                waves.end();
                let recent = written.iter().filter(|time| now - **time < 10).count();
                prop_assert!(recent <= batches.max_nodes.of(units.len()));
            }
        }
    }
}
