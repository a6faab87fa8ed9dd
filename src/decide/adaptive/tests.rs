#![allow(clippy::float_cmp)] // The same computation gives the same result.

use super::{
    config::Config,
    disturbance::Disturbance,
    driver::AdaptiveDriver,
    guard::{self, CRITICAL, is_harmful},
    openness::{self, Percent},
    relax::*,
    signal::{Reading, Signal},
    state::{Efficacy, Episode, Guarded, Lockout, MAX_CHANGES, Pending, State, UptimeCurve, Way, rounded},
    step::*,
    step_size::Share,
    tighten::*,
    tuning::*,
    verdict::MAX_YOUNG_UPTIME,
};
use crate::{
    api::{
        LimitValues,
        adaptive::{Adaptive, FallbackBehavior, Mode, NewConnections},
        conditions,
        guarded::ConnectionRate,
        wording::spoken,
    },
    simulate::plant::policy,
};

/// When the course begins (Unix milliseconds).
const START: i64 = 1_800_000_000_000;
/// The interval of evaluations (milliseconds).
const TICK: i64 = 10_000;
/// Twice the longest declared idle timeout, the interval, and the allowance for a write (milliseconds).
const DEAD: i64 = 2 * 60_000 + TICK + 5_000;

/// Adaptive control on a given signal.
#[allow(clippy::struct_excessive_bools)] // As in Facts.
struct Course {
    tuning: Tuning,
    declared: LimitValues,
    floor: LimitValues,
    state: State,
    now: i64,
    share: Share,
    no_tightening: bool,
    no_relaxing: bool,
    levels: bool,
    in_effect: bool,
    needs_restart: bool,
    rolls: bool,
    disturbance: Option<Disturbance>,
    guard: Option<f64>,
    not_before: i64,
    reading: Reading,
}

impl Course {
    fn new() -> Self {
        let (declared, floor) = policy();
        let tuning = Tuning::of(Some(&Adaptive { mode: Mode::Enforce, ..Adaptive::default() }));
        assert_eq!((tuning.interval, tuning.tighten_after, tuning.relax_after), (TICK, 120_000, 900_000));
        let reading = Reading::of(0.0);
        Self {
            tuning,
            declared,
            floor,
            state: State::default(),
            now: START,
            share: Share::UNKNOWN,
            no_tightening: false,
            no_relaxing: false,
            levels: false,
            in_effect: true,
            needs_restart: false,
            rolls: false,
            disturbance: None,
            guard: None,
            not_before: 0,
            reading,
        }
    }

    /// In progress: the last evaluation was one interval ago, and the averages take the value of the next sample.
    fn at(openness: Percent, edit: impl FnOnce(&mut State)) -> Self {
        let mut course = Self::new();
        course.state.openness = openness;
        course.state.watched.at = Some(START - TICK);
        edit(&mut course.state);
        course
    }

    /// Too many tasks for the whole window.
    fn due(edit: impl FnOnce(&mut State)) -> Self {
        Self::at(100, |state| {
            state.episode = Some(Episode::begin(START - HOUR, 100));
            state.watched.high_for = 10 * MINUTE;
            edit(state);
        })
    }

    /// Room for the whole window.
    fn room(edit: impl FnOnce(&mut State)) -> Self {
        Self::at(50, |state| {
            state.relaxable_since = Some(START - HOUR);
            state.watched.low_for = HOUR;
            edit(state);
        })
    }

    /// A step from 100 to 50, decided at a utilization of 1.5, that is due to be judged.
    fn judged(edit: impl FnOnce(&mut Pending, &mut State)) -> Self {
        Self::at(50, |state| {
            let mut pending = Pending {
                decided: START - 200_000,
                since: Some(START - DEAD),
                wait: DEAD,
                before: 1.5,
                slope: 0.0,
                from: 100,
                to: 50,
                expected: None,
                life: None,
            };
            state.efficacy = Efficacy::Measuring;
            state.changes = vec![(START - 200_000, Way::Tighten)];
            edit(&mut pending, state);
            state.pending = Some(pending);
        })
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            no_tightening: self.no_tightening,
            no_relaxing: self.no_relaxing,
            share: self.share,
            levels: self.levels,
            in_effect: self.in_effect,
            needs_restart: self.needs_restart,
            rolls: self.rolls,
            disturbance: self.disturbance,
            guard: self.guard,
            not_before: self.not_before,
            ..Facts::undisturbed(&self.declared, &self.floor)
        }
    }

    fn signal(&self, signal: &Signal) -> Outcome {
        step(&self.tuning, &self.facts(), &self.state, signal, self.now)
    }

    /// One evaluation; the state is not kept.
    fn look(&self, pressure: f64) -> Outcome {
        self.signal(&Signal::Fresh(Reading { up: pressure, down: pressure, mean: pressure, ..self.reading.clone() }))
    }

    /// Evaluates for so many seconds; returns the steps, with the second of each.
    fn hold(&mut self, pressure: f64, seconds: i64) -> Vec<(i64, Percent)> {
        let (began, mut steps) = (self.now, Vec::new());
        while self.now - began <= seconds * 1000 {
            let outcome = self.look(pressure);
            self.state = outcome.state;
            steps.extend(outcome.decision.map(|decision| ((self.now - began) / 1000, decision.to)));
            self.now += TICK;
        }
        steps
    }

    /// The window for tightening is over: the openness after one evaluation, if it moved.
    fn tightens(&self) -> Option<Percent> {
        self.look(1.5).decision.map(|decision| decision.to)
    }

    /// The window for relaxing is over: the openness after one evaluation, if it moved.
    fn relaxes(&self) -> Option<Percent> {
        self.look(0.4).decision.map(|decision| decision.to)
    }
}

#[test]
fn the_first_step_waits_the_longer_the_less_is_too_many() {
    for (pressure, seconds) in [(2.0, 120), (1.2, 120), (1.125, 170), (1.05, 210), (1.0, 210)] {
        let steps = Course::new().hold(pressure, 240);
        assert_eq!(steps.first().map(|(time, _)| *time), Some(seconds), "{pressure}");
    }
    assert_eq!(Course::new().hold(0.99, 3600), []);
    // If the limits were tightened lately, the first step does not wait longer.
    let mut lately = Course::new();
    lately.state.changes = vec![(START - QUICK_RETIGHTEN + 130_000, Way::Tighten)];
    assert_eq!(lately.hold(1.0, 240).first(), Some(&(120, 80)));
    let mut long_ago = Course::new();
    long_ago.state.changes = vec![(START - QUICK_RETIGHTEN, Way::Tighten)];
    assert_eq!(long_ago.hold(1.0, 240).first(), Some(&(210, 80)));
    let mut relaxed = Course::new();
    relaxed.state.changes = vec![(START - 60_000, Way::Relax)];
    assert_eq!(relaxed.hold(1.0, 240).first(), Some(&(210, 80)));
}

#[test]
fn the_end_of_a_window_is_foreseen() {
    let course = |high_for| {
        Course::at(100, |state| {
            state.episode = Some(Episode::begin(START, 100));
            (state.watched.high_for, state.watched.fast, state.watched.slow) = (high_for, 1.5, 1.5);
        })
    };
    let end = |course: &Course| next_end(&course.tuning, &course.state, START);
    assert_eq!(end(&course(100_000)), Some(20_000));
    assert_eq!(end(&course(120_000)), None);
    let mut quiet = course(100_000);
    quiet.state.watched.fast = EPISODE_END - 0.01;
    assert_eq!(end(&quiet), None);
    quiet.state.watched.fast = EPISODE_END;
    assert_eq!(end(&quiet), Some(110_000), "barely over the threshold");
    for (age, left) in [(QUICK_RETIGHTEN, 110_000), (QUICK_RETIGHTEN - 1, 20_000)] {
        quiet.state.changes = vec![(START - age, Way::Tighten)];
        assert_eq!(end(&quiet), Some(left), "tightened {age} ago");
    }
    quiet.state.changes.clear();
    quiet.state.episode.as_mut().unwrap().steps = 1;
    assert_eq!(end(&quiet), Some(20_000), "further steps do not wait longer");
    let mut judged = course(100_000);
    judged.state.pending = Course::judged(|_, _| {}).state.pending;
    assert_eq!(end(&judged), None);
    assert_eq!(end(&Course::new()), None);
}

#[test]
fn an_episode_closes_under_nine_tenths() {
    assert!(Course::due(|_| {}).look(EPISODE_END).state.episode.is_some());
    assert!(Course::due(|_| {}).look(EPISODE_END - 1e-9).state.episode.is_none());
}

#[test]
fn a_node_that_calls_itself_critical_for_a_minute_is_too_many() {
    let mut course = Course::new();
    course.reading.red = true;
    course.hold(0.5, 50);
    assert!(course.state.episode.is_none());
    course.hold(0.5, 0);
    assert_eq!(course.state.episode.map(|episode| episode.since), Some(START + 60_000));
    course.reading.red = false;
    course.hold(0.5, 0);
    assert_eq!((course.state.episode, course.state.watched.red_for), (None, 0));
}

#[test]
fn room_is_room_without_peaks_and_only_where_something_was_tightened() {
    let counts = |openness, up, down| {
        let course = Course::at(openness, |state| state.relaxable_since = Some(START - TICK));
        let reading = Reading { up, down, mean: down, ..course.reading.clone() };
        course.signal(&Signal::Fresh(reading)).state.watched.low_for
    };
    assert_eq!(counts(50, 0.5, 0.5), TICK);
    assert_eq!(counts(50, 0.5, RELAX_BELOW), TICK);
    assert_eq!(counts(50, 0.5, RELAX_BELOW + 1e-9), 0);
    assert_eq!(counts(50, EPISODE_END - 1e-9, 0.5), TICK);
    assert_eq!(counts(50, EPISODE_END, 0.5), 0);
    assert_eq!(counts(100, 0.5, 0.5), 0);
}

#[test]
fn room_is_written_down_when_it_has_lasted_a_fifth_of_the_window() {
    let mut course = Course::at(50, |state| state.watched.primed = true);
    course.hold(0.2, 160);
    assert_eq!(course.state.relaxable_since, None);
    course.hold(0.2, 0);
    assert_eq!(course.state.relaxable_since, Some(START - TICK), "since it began");
}

#[test]
fn a_day_without_a_change_makes_it_forget() {
    let course = |age, openness, edit: fn(&mut State)| {
        let course = Course::at(openness, |state| {
            state.changes = vec![(START - age, Way::Relax)];
            (state.relax_backoff, state.last_sufficient) = (4, 30);
            edit(state);
        });
        let state = course.look(0.8).state;
        (state.changes.len(), state.relax_backoff, state.last_sufficient)
    };
    assert_eq!(course(DAY - 1000, 100, |_| {}), (1, 4, 30));
    assert_eq!(course(DAY, 100, |_| {}), (0, 1, 100));
    assert_eq!(course(DAY, 50, |_| {}), (0, 1, 30), "not while the limits are tightened");
    let waiting = |state: &mut State| {
        state.pending = Course::judged(|pending, _| pending.since = Some(START)).state.pending;
    };
    assert_eq!(course(DAY, 100, waiting), (0, 1, 30));

    let locked = |until| Course::at(100, |state| state.lockout = Some(Lockout { until, times: 2 })).look(0.5).state.lockout;
    assert!(locked(START - DAY + 1).is_some(), "the number of lock-outs is remembered for another day");
    assert_eq!(locked(START - DAY), None);
}

#[test]
fn a_step_is_judged_when_the_pools_had_time_to_drain_and_a_sample_was_seen() {
    let judged = |course: &Course| course.look(1.0).judged.map(|judged| judged.verdict);
    assert_eq!(judged(&Course::judged(|_, _| {})), Some(Verdict::Effective));
    assert_eq!(judged(&Course::judged(|pending, _| pending.since = Some(START - DEAD + 1))), None);
    assert_eq!(judged(&Course::judged(|pending, _| pending.since = None)), None, "it counts from now");
    assert_eq!(judged(&Course::judged(|_, state| state.watched.at = None)), None, "this is the first evaluation");
    // The effect counts from the time at which it could begin.
    let state = Course::judged(|pending, _| pending.since = None).look(1.0).state;
    assert_eq!((state.pending.unwrap().since, state.settle_until), (Some(START), START + DEAD));
}

#[test]
fn a_process_that_was_restarted_meanwhile_proves_nothing() {
    let verdict = |youngest| {
        let mut course = Course::judged(|_, _| {});
        course.reading.youngest = youngest;
        course.look(1.0).judged.unwrap().verdict
    };
    assert_eq!(verdict(Some(200_000)), Verdict::Effective);
    assert_eq!(verdict(Some(199_999)), Verdict::Inconclusive);
    assert_eq!(verdict(None), Verdict::Effective);
}

#[test]
fn where_a_restart_is_needed_only_the_same_age_compares() {
    let course = |uptime| {
        let mut course = Course::judged(|pending, _| pending.life = Some(UptimeCurve::default()));
        course.reading.youngest = uptime;
        let outcome = course.look(1.0);
        (outcome.judged.map(|judged| judged.verdict), outcome.state.efficacy, outcome.state.pending.is_some())
    };
    assert_eq!(course(None), (None, Efficacy::AwaitingUptimeMatch, true));
    assert_eq!(course(Some(MAX_YOUNG_UPTIME - 1)), (None, Efficacy::AwaitingUptimeMatch, true));
    assert_eq!(course(Some(MAX_YOUNG_UPTIME)), (Some(Verdict::Inconclusive), Efficacy::Measuring, false));
}

#[test]
fn what_is_inconclusive_does_not_take_back_what_was_shown() {
    for (before, after) in [
        (Efficacy::Effective, Efficacy::Effective),
        (Efficacy::Measuring, Efficacy::Measuring),
        (Efficacy::Ineffective, Efficacy::Measuring),
    ] {
        let outcome = Course::judged(|_, state| state.efficacy = before).look(1.5);
        assert_eq!(outcome.judged.unwrap().verdict, Verdict::Inconclusive);
        assert_eq!(outcome.state.efficacy, after, "{before:?}");
    }
}

#[test]
fn giving_up_goes_back_and_locks_twice_as_long_each_time() {
    for (times, hours) in [(None, 4), (Some(0), 8), (Some(1), 16), (Some(2), 24), (Some(9), 24)] {
        let mut course = Course::due(|state| {
            state.lockout = times.map(|times| Lockout { until: START, times });
            state.openness = 40;
        });
        course.share = Share::estimated(0.06);
        let outcome = course.look(1.5);
        assert_eq!(outcome.state.lockout.map(|lockout| lockout.until), Some(START + hours * HOUR), "{times:?}");
        assert_eq!((outcome.limit, outcome.decision.unwrap().to), (Some(Restriction::PoolsTooSmall), 100));
    }
    // At the openness where the episode began, there is nothing to take back.
    let mut there = Course::due(|_| {});
    there.share = Share::estimated(0.06);
    let outcome = there.look(1.5);
    assert_eq!((outcome.decision, outcome.state.rollback), (None, None));
    assert_eq!(outcome.limit, Some(Restriction::PoolsTooSmall));
    // During the lock-out nothing is decided, and the status reports it.
    let mut locked = Course { state: outcome.state, now: START + TICK, ..there };
    assert_eq!(locked.look(1.5).limit, Some(Restriction::PoolsTooSmall));
    assert_eq!(locked.hold(1.5, 3600), []);
    let helped = Course::due(|state| {
        state.openness = 40;
        state.episode = Some(Episode { helped: Some(40), ..Episode::begin(START - HOUR, 100) });
    });
    assert_eq!(Course { share: Share::estimated(0.06), ..helped }.look(1.5).state.rollback, None);
}

#[test]
fn a_pause_stores_nothing_up_in_its_own_direction() {
    type Switch = fn(&mut Course, bool);
    let tightening: Switch = |course, on| course.no_tightening = on;
    let relaxing: Switch = |course, on| course.no_relaxing = on;
    let recommend: Switch = |course, on| course.tuning.mode = if on { Mode::Recommend } else { Mode::Enforce };
    // What is paused, what of it ends, and when the limits are tightened then: 80 s of the window have passed in the pause.
    for (paused, ends, expected) in [
        (&[tightening][..], tightening, 120),
        (&[relaxing], relaxing, 30),
        (&[recommend], recommend, 120),
        (&[tightening, relaxing], tightening, 120),
    ] {
        let mut course = Course::new();
        for pause in paused {
            pause(&mut course, true);
        }
        course.hold(1.5, 80);
        ends(&mut course, false);
        let began = course.now;
        assert_eq!(course.hold(1.5, 150).first().map(|(time, _)| *time), Some(expected));
        assert_eq!(course.state.changes, [(began + expected * 1000, Way::Tighten)]);
    }
    let mut course = Course::new();
    course.hold(1.5, 80);
    assert_eq!(course.hold(1.5, 100).first().map(|(time, _)| *time), Some(30), "nothing was paused");
}

#[test]
fn no_step_is_taken_against_the_present_count() {
    let course = || Course::due(|state| (state.watched.fast, state.watched.slow, state.watched.primed) = (1.9, 1.9, true));
    let outcome = course().look(0.5);
    assert!(outcome.state.watched.fast > 1.0, "the average is still above the threshold");
    assert_eq!(outcome.decision, None);
    assert!(course().look(1.5).decision.is_some());
}

#[test]
fn what_may_not_be_done_is_recommended() {
    let mut due = Course::due(|_| {});
    due.no_tightening = true;
    let outcome = due.look(1.5);
    assert_eq!((outcome.decision, outcome.recommendation.unwrap().to, outcome.limit), (None, 58, Some(Restriction::Paused)));
    due.no_tightening = false;
    due.tuning.mode = Mode::Recommend;
    let outcome = due.look(1.5);
    assert_eq!((outcome.decision, outcome.recommendation.unwrap().to, outcome.limit), (None, 58, None));
    let mut room = Course::room(|_| {});
    room.no_relaxing = true;
    let outcome = room.look(0.4);
    assert_eq!((outcome.decision, outcome.recommendation.unwrap().to, outcome.limit), (None, 80, Some(Restriction::Paused)));
    room.no_relaxing = false;
    room.tuning.mode = Mode::Recommend;
    let outcome = room.look(0.4);
    assert_eq!((outcome.decision, outcome.recommendation.unwrap().to, outcome.limit), (None, 80, None));
}

#[test]
fn a_recommendation_is_news_when_its_tens_change() {
    let digest = |to| {
        let decision = Decision { from: 100, to, reason: Reason::Ineffective, pressure: 1.0 };
        let outcome = Outcome { recommendation: Some(decision), ..Course::new().look(0.5) };
        outcome.digest(&Signal::Missing { reason: conditions::Reason::Stale, message: String::new() })
    };
    assert_eq!(digest(61), digest(69));
    assert_ne!(digest(61), digest(71));
}

#[test]
fn half_an_hour_at_the_floor_with_nothing_to_show_for_it_is_enough() {
    let course = |edit: fn(&mut State)| {
        let mut course = Course::at(0, |state| {
            state.episode = Some(Episode { base: Some(1.5), steps: 5, ..Episode::begin(START, 100) });
            edit(state);
        });
        course.hold(1.5, 1800)
    };
    assert_eq!(course(|_| {}), [(1790, 100)], "counted from an evaluation before the first");
    assert_eq!(course(|state| state.watched.at = None), [(1800, 100)]);
    assert_eq!(course(|state| state.episode.as_mut().unwrap().helped = Some(50)), [], "tightening helped, but is not enough");
    assert_eq!(course(|state| state.episode.as_mut().unwrap().base = Some(1.7)), [], "tightening helped");
    assert_eq!(course(|state| state.efficacy = Efficacy::Effective), []);
    let mut pending = Course::at(0, |state| {
        state.episode = Some(Episode::begin(START - HOUR, 100));
        state.pending = Course::judged(|pending, _| pending.since = None).state.pending;
        state.watched.floor_for = HOUR;
    });
    let outcome = pending.look(1.5);
    assert_eq!((outcome.decision, outcome.limit), (None, Some(Restriction::AtFloor)), "the step is being measured");
    pending.state.pending = None;
    assert!(pending.look(1.5).decision.is_some());
    // The half hour counts only over the threshold and at the floor.
    assert_eq!(Course::at(0, |state| state.watched.floor_for = HOUR).look(0.95).state.watched.floor_for, 0);
    assert_eq!(Course::at(1, |state| state.watched.floor_for = HOUR).look(1.5).state.watched.floor_for, 0);
}

#[test]
fn nothing_is_decided_before_its_time() {
    assert_eq!(Course::due(|_| {}).tightens(), Some(58));
    assert_eq!(Course::room(|_| {}).relaxes(), Some(80));
    for (not_before, acts) in [(START, true), (START + 1, false)] {
        assert_eq!(Course { not_before, ..Course::due(|_| {}) }.tightens().is_some(), acts);
        assert_eq!(Course { not_before, ..Course::room(|_| {}) }.relaxes().is_some(), acts);
    }
    for (dead_until, acts) in [(START, true), (START + 1, false)] {
        assert_eq!(Course::due(|state| state.settle_until = dead_until).tightens().is_some(), acts);
        assert_eq!(Course::room(|state| state.settle_until = dead_until).relaxes().is_some(), acts);
    }
    let waiting = || Course::judged(|pending, _| pending.since = None).state.pending;
    assert_eq!(Course::due(|state| state.pending = waiting()).tightens(), None);
    assert_eq!(Course::room(|state| state.pending = waiting()).relaxes(), None);
    let mut locked = Course::due(|state| state.lockout = Some(Lockout { until: START + 1, times: 0 }));
    assert_eq!(locked.tightens(), None);
    locked.state.lockout = Some(Lockout { until: START, times: 0 });
    assert_eq!(locked.tightens(), Some(58));
}

#[test]
fn a_lock_out_is_a_limit_to_its_end_whatever_the_task_count() {
    for pressure in [0.5, 1.5] {
        let limit = |until| {
            let locked =
                |state: &mut State| (state.lockout, state.efficacy) = (Some(Lockout { until, times: 0 }), Efficacy::Ineffective);
            Course::at(100, locked).look(pressure).limit
        };
        assert_eq!((limit(START + 1), limit(START)), (Some(Restriction::Locked), None), "{pressure}");
    }
}

#[test]
fn a_step_back_that_waits_for_its_turn_is_not_paused() {
    let waits = |edit: &dyn Fn(&mut Course)| {
        let mut course = Course::at(40, |state| (state.rollback, state.settle_until) = (Some(100), START + 1));
        edit(&mut course);
        let outcome = course.look(1.5);
        (outcome.decision.map(|decision| decision.to), outcome.limit)
    };
    assert_eq!(waits(&|_| {}), (None, None));
    assert_eq!(waits(&|course| course.state.settle_until = START), (Some(100), None));
    assert_eq!(waits(&|course| course.no_relaxing = true), (None, Some(Restriction::Paused)));
}

#[test]
fn every_change_has_its_dead_time() {
    assert_eq!(Course::due(|_| {}).look(1.5).state.settle_until, START + DEAD);
    // By the longest idle timeout that the pools have.
    let idle = i64::try_from(openness::longest_idle(&policy().0, &policy().1, 50).as_millis()).unwrap();
    assert_eq!(Course::room(|_| {}).look(0.4).state.settle_until, START + 2 * idle + TICK + WRITE_ALLOWANCE);
}

#[test]
fn the_next_episode_goes_straight_to_what_was_enough() {
    // A day without a change would reset it.
    let lately = vec![(START - 3 * HOUR, Way::Relax)];
    let to = |proved| Course::due(|state| (state.last_sufficient, state.changes) = (proved, lately.clone())).tightens();
    assert_eq!(to(30), Some(30));
    assert_eq!(to(99), Some(58), "a step has its minimum size");
    assert_eq!(to(100), Some(58));
    let further = Course::due(|state| {
        (state.last_sufficient, state.changes) = (30, lately.clone());
        state.episode.as_mut().unwrap().steps = 1;
    });
    assert_eq!(further.tightens(), Some(58), "only the first step does");
}

#[test]
fn relaxing_while_nobody_uses_the_pools_disproves_nothing() {
    let proved = |pressure: f64| Course::room(|state| state.last_sufficient = 60).look(pressure).state.last_sufficient;
    assert_eq!(proved(IDLE_UTILIZATION - 0.001), 50);
    assert_eq!(proved(IDLE_UTILIZATION), 100);
    assert_eq!(Course::room(|state| state.last_sufficient = 20).look(0.1).state.last_sufficient, 20);
}

#[test]
fn a_step_notes_what_it_will_be_judged_by() {
    let mut course = Course::due(|state| {
        (state.watched.primed, state.watched.fast, state.watched.slow) = (true, 1.5, 1.2);
    });
    course.tuning.fast = 1e15;
    course.tuning.slow = 1e15 + 120_000.0;
    course.share = Share::estimated(0.5);
    let pending = course.look(1.5).state.pending.unwrap();
    let left = openness::remaining(&course.declared, &course.floor, 100, pending.to);
    assert_eq!((pending.before, pending.slope), (1.5, 0.0025), "three tenths in the two minutes between the averages");
    assert_eq!(pending.expected, Some(rounded(0.5 * (1.0 - left))));
    assert_eq!((pending.decided, pending.wait, pending.from), (START, DEAD, 100));
}

#[test]
fn patience_lengthens_the_window_to_two_hours_at_most() {
    let relaxes = |patience, relax_after, levels, low_for| {
        let mut course = Course::room(|state| {
            // A day without a change would reset it.
            state.changes = vec![(START - 3 * HOUR, Way::Relax)];
            (state.relax_backoff, state.watched.low_for) = (patience, low_for - TICK);
        });
        (course.tuning.relax_after, course.levels) = (relax_after, levels);
        course.relaxes().is_some()
    };
    let quarter = 15 * MINUTE;
    for (patience, relax_after, levels, window) in [
        (1, quarter, false, quarter),
        (1, quarter, true, 2 * quarter),
        (4, quarter, false, HOUR),
        (8, quarter, false, 2 * HOUR),
        (8, 2 * quarter, false, 2 * HOUR),
        (1, 3 * HOUR, false, 3 * HOUR),
    ] {
        assert!(relaxes(patience, relax_after, levels, window), "{patience} {relax_after} {levels}");
        assert!(!relaxes(patience, relax_after, levels, window - 1), "{patience} {relax_after} {levels}");
    }
}

#[test]
fn so_many_changes_in_any_hour_and_any_day() {
    let limit = |per_hour, per_day, ages: &[i64]| {
        let mut course = Course::due(|state| {
            state.changes = ages.iter().map(|age| (START - age, Way::Tighten)).collect();
        });
        (course.tuning.per_hour, course.tuning.per_day) = (per_hour, per_day);
        let outcome = course.look(1.5);
        assert_eq!(outcome.decision.is_none(), outcome.limit == Some(Restriction::BudgetExhausted));
        outcome.limit
    };
    assert_eq!(limit(1, 9, &[HOUR]), None);
    assert_eq!(limit(1, 9, &[HOUR - 1]), Some(Restriction::BudgetExhausted));
    assert_eq!(limit(9, 2, &[DAY - 1, 2 * HOUR]), Some(Restriction::BudgetExhausted));
    assert_eq!(limit(9, 2, &[DAY, 2 * HOUR]), None);
    // As many changes are remembered as the largest budget has.
    let changes = |n: usize| {
        let mut course = Course::due(|state| state.changes = vec![(START - 3 * HOUR, Way::Relax); n]);
        (course.tuning.per_hour, course.tuning.per_day) = (1000, 1000);
        course.look(1.5).state.changes.len()
    };
    assert_eq!((changes(MAX_CHANGES - 1), changes(MAX_CHANGES)), (MAX_CHANGES, MAX_CHANGES));
}

#[test]
fn tightening_soon_after_relaxing_makes_it_patient() {
    let patience = |age, way, patience| {
        let course = Course::due(|state| {
            state.changes = vec![(START - age, way)];
            state.relax_backoff = patience;
        });
        course.look(1.5).state.relax_backoff
    };
    assert_eq!(patience(QUICK_RETIGHTEN - 1, Way::Relax, 1), 4);
    assert_eq!(patience(QUICK_RETIGHTEN - 1, Way::Relax, 4), 8);
    assert_eq!(patience(QUICK_RETIGHTEN, Way::Relax, 1), 1);
    assert_eq!(patience(QUICK_RETIGHTEN - 1, Way::Tighten, 1), 1);
}

#[test]
fn without_a_mode_or_a_floor_nothing_is_decided_and_the_limits_are_as_declared() {
    let mut disabled = Course::due(|state| state.openness = 40);
    disabled.tuning.mode = Mode::Disabled;
    let mut floorless = Course::due(|state| state.openness = 40);
    floorless.floor.clear();
    for course in [disabled, floorless] {
        let outcome = course.look(1.5);
        assert_eq!((outcome.state.openness, outcome.phase, outcome.decision), (100, Phase::AsDeclared, None));
    }
}

#[test]
fn averages_begin_anew_after_a_silence_and_room_has_to_be_seen_again() {
    let look = |edit: fn(&mut State)| {
        let state = Course::at(50, |state| {
            (state.watched.primed, state.watched.fast, state.watched.slow) = (true, 0.2, 0.2);
            edit(state);
        });
        let watched = state.look(0.6).state.watched;
        (watched.fast, watched.slow)
    };
    let (fast, slow) = look(|_| {});
    assert!((0.2..0.6).contains(&fast) && (0.2..fast).contains(&slow), "{fast} {slow}");
    assert_eq!(look(|state| state.watched.at = None), (0.6, 1.0));
    assert_eq!(look(|state| state.watched.at = Some(START - HOUR)), (0.6, 1.0));
    assert_eq!(look(|state| (state.watched.at, state.relaxable_since) = (None, Some(START))), (0.6, 0.6));
    assert_eq!(look(|state| state.watched.primed = false), (0.6, 1.0));
    assert_eq!(look(|state| state.watched.fast = f64::NAN).0, 0.6);
}

#[test]
fn a_clock_that_was_set_back_leaves_nothing_in_the_future() {
    let later = START + HOUR;
    let course = Course::at(50, |state| {
        state.episode = Some(Episode::begin(later, 100));
        state.changes = vec![(later, Way::Tighten)];
        state.relaxable_since = Some(later);
        (state.settle_until, state.lockout) = (START + 9 * DAY, Some(Lockout { until: START + 9 * DAY, times: 0 }));
        state.pending = Course::judged(|pending, _| (pending.decided, pending.since) = (later, Some(later))).state.pending;
    });
    let now = START + 1234;
    let state = Course { now, ..course }.look(0.95).state;
    assert_eq!(state.episode.map(|episode| episode.since), Some(now));
    assert_eq!(state.changes, [(START + 1000, Way::Tighten)], "in whole seconds, as the state stores them");
    assert_eq!((state.settle_until, state.lockout.map(|lockout| lockout.until)), (now + DAY, Some(now + DAY)));
    let pending = state.pending.unwrap();
    assert_eq!((pending.decided, pending.since), (now, Some(now)));
}

#[test]
fn in_the_dark_the_limits_go_back_only_if_that_is_wanted_and_not_paused() {
    let missing = Signal::Missing { reason: conditions::Reason::Stale, message: String::new() };
    let mut course = Course::at(50, |state| {
        state.fallback = true;
        state.changes = vec![(START - HOUR, Way::Tighten)];
    });
    assert_eq!(course.signal(&missing).decision, None);
    course.tuning.fallback_relaxes = Adaptive::default().fallback.is_none_or(|f| f.behavior == FallbackBehavior::Hold);
    assert_eq!(course.signal(&missing).decision.map(|decision| decision.to), Some(60));
    let at = |openness, age| {
        let mut course = Course::at(openness, |state| {
            (state.fallback, state.changes) = (true, vec![(START - age, Way::Tighten)]);
        });
        course.tuning.fallback_relaxes = true;
        course.signal(&missing).decision.map(|decision| decision.to)
    };
    assert_eq!((at(100, HOUR), at(50, 900_000), at(50, 899_999)), (None, Some(60), None));
    course.no_relaxing = true;
    assert_eq!(course.signal(&missing).decision, None);
    course.no_relaxing = false;
    course.tuning.mode = Mode::Recommend;
    assert_eq!(course.signal(&missing).decision, None);
}

#[test]
fn the_fallback_begins_after_its_time_in_the_dark_and_ends_after_two_minutes_of_light() {
    let missing = Signal::Missing { reason: conditions::Reason::Stale, message: String::new() };
    let course = |missing_for| {
        let course = Course::at(50, |state| state.watched.missing_for = missing_for - TICK);
        let state = course.signal(&missing).state;
        (state.fallback, state.watched.fresh_for, state.watched.red_for)
    };
    assert_eq!(course(300_000), (true, 0, 0));
    assert_eq!(course(299_999), (false, 0, 0));
    let light = |fresh_for| {
        Course::at(50, |state| (state.fallback, state.watched.fresh_for) = (true, fresh_for - TICK)).look(0.5).state.fallback
    };
    assert_eq!((light(FALLBACK_EXIT_AFTER), light(FALLBACK_EXIT_AFTER - 1)), (false, true));
    assert!(!Course::at(50, |state| state.watched.fresh_for = HOUR).look(0.5).state.fallback, "the fallback was not active");
}

#[test]
fn the_first_step_wants_it_to_last_over_the_line_itself() {
    let high_for = |steps, pressure| {
        let course = Course::due(|state| state.episode.as_mut().unwrap().steps = steps);
        course.look(pressure).state.watched.high_for
    };
    assert_eq!((high_for(0, EPISODE_START), high_for(0, EPISODE_START - 1e-9)), (10 * MINUTE + TICK, 0));
    assert_eq!((high_for(1, EPISODE_START - 1e-9), high_for(2, EPISODE_END)), (10 * MINUTE + TICK, 10 * MINUTE + TICK));
}

#[test]
fn while_the_last_step_is_not_in_effect_nothing_more_is_decided_and_who_has_to_act_is_said() {
    let (forbidden, unknown) = (Some(Restriction::RestartForbidden), Some(Restriction::NotInEffect));
    for (needs_restart, rolls, to_tighten, limit) in [
        (false, false, unknown, None),
        (true, false, forbidden, forbidden),
        (true, true, None, None),
        (false, true, unknown, None),
    ] {
        let set = |course: Course| Course { in_effect: false, needs_restart, rolls, ..course };
        let outcome = set(Course::due(|_| {})).look(1.5);
        assert_eq!((outcome.decision, outcome.limit), (None, to_tighten));
        let outcome = set(Course::room(|_| {})).look(0.4);
        assert_eq!((outcome.decision, outcome.limit), (None, limit));
    }
}

#[test]
fn times_are_said_as_people_say_them() {
    for (seconds, words) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (7259, "2h"),
        (7260, "2h 1m"),
        (10_859, "3h"),
        (10_860, "3h 1m"),
        (86_399, "23h 59m"),
    ] {
        assert_eq!(spoken(seconds * 1000 + 999), words);
    }
}

#[test]
fn a_step_that_no_node_uses_does_not_stand_in_the_way_of_relaxing() {
    let waits = |in_effect, since, rolls| {
        let mut course = Course::judged(|pending, state| {
            (pending.since, pending.decided) = (since, START - HOUR);
            (state.relaxable_since, state.watched.low_for, state.settle_until) = (Some(START - HOUR), HOUR, 0);
            (state.watched.fast, state.watched.slow, state.watched.primed) = (0.03, 0.03, true);
        });
        (course.in_effect, course.needs_restart, course.rolls) = (in_effect, true, rolls);
        course.look(0.03)
    };
    let withdrawn = waits(false, None, false);
    let step = withdrawn.decision.expect("a step back");
    assert_eq!((step.from, step.to, step.reason), (50, 100, Reason::Withdrawn));
    assert_eq!(withdrawn.judged.map(|judged| judged.verdict), Some(Verdict::Inconclusive), "the effect of the step is not known");
    assert_eq!((withdrawn.state.pending, withdrawn.state.efficacy), (None, Efficacy::NotTightened));
    // Nodes that are being restarted for the step will use it.
    let rolling = waits(false, None, true);
    assert!(rolling.decision.is_none() && rolling.state.pending.is_some() && rolling.limit.is_none(), "{rolling:?}");
    // A step that nodes have begun to use is measured.
    let using = waits(true, Some(START - MINUTE), false);
    assert!(using.decision.is_none() && using.state.pending.is_some(), "{using:?}");
}

#[test]
fn a_step_that_waits_for_a_restart_says_so_whatever_the_task_count() {
    for pressure in [0.03, 0.8, 1.5] {
        let mut course = Course::judged(|pending, _| pending.since = None);
        (course.in_effect, course.needs_restart) = (false, true);
        assert_eq!(course.look(pressure).limit, Some(Restriction::RestartForbidden), "{pressure}");
        course.rolls = true;
        assert_eq!(course.look(pressure).limit, None, "{pressure}: the nodes are being restarted");
    }
}

#[test]
fn an_alert_is_not_said_in_percent() {
    let mut course = Course::due(|state| (state.watched.fast, state.watched.slow, state.watched.primed) = (2.0, 2.0, true));
    let said = |course: &Course| course.look(2.0).decision.map(|decision| decision.reason.to_string());
    assert_eq!(said(&course).as_deref(), Some("on average 200% of the threshold for 10m"));
    course.levels = true;
    assert_eq!(said(&course).as_deref(), Some("task count alert raised for 10m"));
}

/// Caddy: its servers keep idle connections for up to 5 min by default.
const RELOAD: Disturbance = Disturbance { settle: 0, longest_idle: 5 * MINUTE };
/// How long a verdict waits there (milliseconds).
const CLAIM: i64 = 375_000;

/// A step on a target whose writes close connections, in effect for this long (milliseconds); the utilization before
/// was 1.5.
fn reloaded(in_effect_for: i64, edit: impl FnOnce(&mut Pending, &mut State)) -> Course {
    let mut course = Course::judged(|pending, state| {
        (pending.since, pending.wait, pending.decided) = (Some(START - in_effect_for), CLAIM, START - in_effect_for - MINUTE);
        (state.watched.primed, state.watched.fast, state.watched.slow) = (true, 1.5, 1.5);
        state.watched.fresh_for = HOUR;
        edit(pending, state);
    });
    course.disturbance = Some(RELOAD);
    course
}

#[test]
fn where_a_write_closes_connections_a_verdict_waits_until_they_can_be_back_and_the_count_is_level() {
    let verdict = |course: &Course, pressure| course.look(pressure).judged.map(|judged| judged.verdict);
    let level = |since: i64, at: f64| {
        move |_: &mut Pending, state: &mut State| {
            (state.watched.fast, state.watched.slow, state.watched.plateau) = (at, at, Some((START - since, at)));
        }
    };
    // The slow average takes 140 s to follow, which is more than a quarter of the claim time.
    let quarter = 140_000;
    assert_eq!(verdict(&reloaded(CLAIM - 1, level(quarter, 1.0)), 1.0), None, "connections may still come back");
    assert_eq!(verdict(&reloaded(CLAIM, level(quarter - 1, 1.0)), 1.0), None, "the count has not been level for long enough");
    assert_eq!(verdict(&reloaded(CLAIM, level(quarter, 1.0)), 1.0), Some(Verdict::Effective));
    assert_eq!(
        verdict(&reloaded(CLAIM, level(quarter, 1.4)), 1.4),
        Some(Verdict::Inconclusive),
        "less than a tenth is no effect"
    );
    let rising = |_: &mut Pending, state: &mut State| {
        (state.watched.fast, state.watched.slow, state.watched.plateau) = (1.0, 1.0, Some((START - HOUR, 0.97)));
    };
    assert_eq!(verdict(&reloaded(CLAIM, rising), 1.0), None, "the count still rises");
    assert_eq!(verdict(&reloaded(3 * CLAIM, rising), 1.0), Some(Verdict::Effective), "but not forever");
}

#[test]
fn what_fell_because_of_a_write_ends_no_episode_and_is_no_high_count() {
    let mut course = reloaded(MINUTE, |_, state| {
        state.episode = Some(Episode { steps: 1, base: Some(1.5), ..Episode::begin(START - HOUR, 100) });
        (state.watched.fast, state.watched.slow) = (0.2, 0.9);
    });
    let kept = |course: &Course| course.look(0.2).state.episode.is_some();
    assert!(kept(&course) && course.look(0.2).has_dipped, "connections come back");
    if let Some(pending) = &mut course.state.pending {
        pending.since = Some(START - CLAIM);
    }
    assert!(!kept(&course), "the connections are back, or will not come back");
    course.disturbance = None;
    assert!(!kept(&course));
}

#[test]
fn where_a_write_closes_connections_steps_are_few_and_share_a_verdict() {
    let due = |steps, openness, pending: Option<Pending>| {
        let mut course = Course::due(|state| {
            state.episode = Some(Episode { steps, ..Episode::begin(START - HOUR, 100) });
            (state.openness, state.pending) = (openness, pending);
        });
        course.disturbance = Some(RELOAD);
        course
    };
    assert_eq!(due(0, 100, None).look(1.05).decision.map(|step| step.to), Some(70), "30 points at least");
    assert_eq!(due(2, 40, None).look(1.05).decision.map(|step| step.to), Some(0), "the third goes to the floor");
    let first = reloaded(10 * MINUTE, |_, _| {}).state.pending.expect("a step");
    let second = due(1, 50, Some(Pending { since: Some(START - 4 * MINUTE), ..first.clone() }));
    let outcome = second.look(1.5);
    assert_eq!(
        outcome.decision.map(|step| (step.from, step.to <= 20)),
        Some((50, true)),
        "the step does not wait for the verdict"
    );
    let shared = outcome.state.pending.expect("one verdict for both");
    assert_eq!((shared.decided, shared.before, shared.from, shared.since), (first.decided, first.before, 100, None));
}

#[test]
fn a_step_is_not_taken_back_past_one_that_shares_its_verdict_and_is_in_use() {
    // From 100 to 75, which the nodes use, then to 50, which they do not use yet.
    let waits = |last_change: i64| {
        let mut course = reloaded(MINUTE, |pending, state| {
            (pending.since, pending.decided) = (None, START - HOUR);
            state.changes = vec![(START - HOUR, Way::Tighten), (START - last_change, Way::Tighten)];
            (state.relaxable_since, state.watched.low_for, state.settle_until) = (Some(START - HOUR), HOUR, 0);
            (state.watched.fast, state.watched.slow) = (0.1, 0.1);
        });
        course.in_effect = false;
        course.look(0.1).decision.map(|step| step.to)
    };
    assert_eq!(waits(30 * MINUTE), None, "100 would be more than the nodes use");
    assert_eq!(waits(HOUR), Some(100), "a single step is taken back");
}

#[test]
fn a_verdict_that_is_due_later_does_not_block_relaxing() {
    let mut course = reloaded(10 * MINUTE, |_, state| {
        (state.relaxable_since, state.watched.low_for, state.settle_until) = (Some(START - HOUR), HOUR, 0);
        (state.watched.fast, state.watched.slow) = (0.1, 0.1);
        // Kept, because the write may have caused the fall.
        state.episode = Some(Episode { steps: 1, base: Some(1.5), ..Episode::begin(START - HOUR, 100) });
    });
    if let Some(pending) = &mut course.state.pending {
        pending.since = Some(START - 4 * MINUTE);
    }
    let outcome = course.look(0.1);
    assert!(outcome.decision.is_some_and(|step| step.to > step.from), "{outcome:?}");
    assert_eq!((outcome.judged.map(|judged| judged.verdict), outcome.state.pending), (Some(Verdict::Inconclusive), None));
}

/// A rate of new connections on four nodes, as a reading has it.
#[allow(clippy::unnecessary_wraps)]
const fn new_connections(connections: f64) -> Option<ConnectionRate> {
    Some(ConnectionRate { connections, requests: None, nodes: 4.0 })
}

/// Ten new connections per second and too many tasks, until the first step is made and in effect: from 100% to 58%.
fn guarded() -> Course {
    let mut course = Course::new();
    (course.guard, course.reading.rate) = (Some(20.0), new_connections(10.0));
    assert_eq!(course.hold(1.5, 130), [(120, 58)]);
    course
}

/// Verdicts over so many seconds, with the second of each.
fn verdicts(course: &mut Course, pressure: f64, seconds: i64) -> Vec<(i64, Verdict)> {
    let (began, mut verdicts) = (course.now, Vec::new());
    while course.now - began <= seconds * 1000 {
        let outcome = course.look(pressure);
        verdicts.extend(outcome.judged.map(|judged| ((course.now - began) / 1000, judged.verdict)));
        course.state = outcome.state;
        course.now += TICK;
    }
    verdicts
}

/// When a step of [`guarded`] is judged by its new connections: after the dead time and a window of two minutes.
const GUARDED: i64 = (DEAD / 1000 + 120) / 10 * 10;

#[test]
fn what_counts_as_harm() {
    let rate = |connections, requests, nodes| ConnectionRate { connections, requests, nodes };
    let cases = [
        // what, before, after, harmful above 20 a second
        ("twice as many", rate(15.0, None, 4.0), rate(30.0, None, 4.0), false),
        ("more than twice as many", rate(15.0, None, 4.0), rate(30.1, None, 4.0), true),
        ("as many as are allowed", rate(1.0, None, 4.0), rate(20.0, None, 4.0), false),
        ("none before", rate(0.0, None, 4.0), rate(20.1, None, 4.0), true),
        ("twice the nodes", rate(15.0, None, 4.0), rate(40.0, None, 8.0), false),
        ("half of the nodes, with the same load", rate(15.0, None, 4.0), rate(15.0, None, 1.0), false),
        ("half of the nodes had no samples before", rate(15.0, None, 2.0), rate(32.0, None, 4.0), false),
        ("twice the load", rate(15.0, Some(100.0), 4.0), rate(60.0, Some(250.0), 4.0), false),
        ("more per request", rate(15.0, Some(100.0), 4.0), rate(31.0, Some(100.0), 4.0), true),
        ("more per request, of half of the load", rate(15.0, Some(100.0), 4.0), rate(21.0, Some(50.0), 4.0), true),
        ("no request before", rate(15.0, Some(0.0), 4.0), rate(90.0, Some(100.0), 4.0), false),
        ("no request after", rate(15.0, Some(100.0), 4.0), rate(90.0, Some(0.0), 4.0), false),
        ("requests counted before only", rate(15.0, Some(100.0), 4.0), rate(31.0, None, 4.0), true),
    ];
    for (what, before, after, harmful) in cases {
        assert_eq!(is_harmful(&before, &after, 20.0), harmful, "{what}");
    }
}

#[test]
fn a_step_that_doubles_new_connections_is_taken_back_and_locked() {
    let mut course = guarded();
    let before = course.state.guarded.expect("a guarded step");
    assert_eq!((before.from, before.window, before.before), (100, 120_000, new_connections(10.0).unwrap()));
    course.reading.rate = new_connections(50.0);
    let mut last = course.state.clone();
    let began = course.now;
    let outcome = loop {
        let outcome = course.look(1.5);
        if outcome.judged.is_some() {
            break outcome;
        }
        assert_eq!(outcome.state.efficacy, Efficacy::Measuring);
        last = outcome.state.clone();
        course.state = outcome.state;
        course.now += TICK;
    };
    assert_eq!((course.now - began) / 1000, GUARDED, "after the dead time and one window");
    assert_eq!(outcome.judged.map(|judged| judged.verdict), Some(Verdict::Harmful));
    assert_eq!(outcome.decision.map(|step| (step.from, step.to, step.reason)), Some((58, 100, Reason::Harmful)), "at once");
    let harm = outcome.harm.expect("the figures");
    assert_eq!((harm.before, harm.after), (new_connections(10.0).unwrap(), new_connections(50.0).unwrap()));
    assert_eq!((outcome.state.efficacy, outcome.limit), (Efficacy::Harmful, Some(Restriction::Locked)));
    assert_eq!(outcome.state.lockout, Some(Lockout { until: course.now + 4 * HOUR, times: 0 }));
    assert_eq!((outcome.state.guarded, outcome.state.rollback), (None, None));
    course.state = outcome.state;
    assert_eq!(course.hold(1.5, 3 * 3600), [], "nothing is tightened during the lock-out");

    // Where the budget is used up, the step is taken back as soon as it allows it.
    course.now = began + GUARDED * 1000;
    course.state = last;
    course.state.changes = (0..4).map(|n| (course.now - (50 - n) * MINUTE, Way::Tighten)).collect();
    let outcome = course.look(1.5);
    assert_eq!((outcome.decision, outcome.limit, outcome.state.rollback), (None, Some(Restriction::BudgetExhausted), Some(100)));
}

#[test]
fn a_guarded_step_leaves_a_change_of_the_budget_for_taking_it_back() {
    let decided = |guard, used: i64, per_hour| {
        let mut course = Course::due(|state| {
            state.changes = (0..used).map(|n| (START - (50 - n) * MINUTE, Way::Tighten)).collect();
        });
        (course.guard, course.tuning.per_hour) = (guard, per_hour);
        let outcome = course.look(1.5);
        (outcome.decision.is_some(), outcome.limit)
    };
    assert_eq!(decided(Some(20.0), 2, 4), (true, None));
    assert_eq!(decided(Some(20.0), 3, 4), (false, Some(Restriction::BudgetExhausted)));
    assert_eq!(decided(None, 3, 4), (true, None));
    assert_eq!(decided(Some(20.0), 0, 1), (true, None), "a budget of one change has none to keep");
    assert_eq!(decided(Some(20.0), 1, 1), (false, Some(Restriction::BudgetExhausted)));
}

#[test]
fn connections_that_come_back_after_the_step_are_no_harm() {
    let mut course = guarded();
    course.reading.rate = new_connections(500.0);
    assert_eq!(verdicts(&mut course, 0.85, DEAD / 1000 - 10), []);
    course.reading.rate = new_connections(10.0);
    let judged = verdicts(&mut course, 0.85, 200);
    assert_eq!(judged.into_iter().map(|(_, verdict)| verdict).collect::<Vec<_>>(), [Verdict::Effective]);
    assert_eq!((course.state.guarded, course.state.openness), (None, 58));
}

#[test]
fn one_high_sample_is_no_harm() {
    let mut course = guarded();
    assert_eq!(verdicts(&mut course, 0.85, 200), []);
    course.reading.rate = new_connections(100.0);
    course.hold(0.85, 0);
    course.reading.rate = new_connections(10.0);
    assert_eq!(verdicts(&mut course, 0.85, 60), [(30, Verdict::Effective)], "17.5 a second on average");
}

#[test]
fn without_a_rate_the_guard_says_nothing() {
    // Not known after the step: the verdict on the task count waits for three windows.
    let mut course = guarded();
    course.reading.rate = None;
    assert_eq!(verdicts(&mut course, 0.85, 600), [(DEAD / 1000 / 10 * 10 + 360, Verdict::Effective)]);
    assert_eq!(course.state.guarded, None);
    // Not known before it: nothing waits.
    let mut course = Course::new();
    course.guard = Some(20.0);
    assert_eq!(course.hold(1.5, 130), [(120, 58)]);
    assert_eq!(course.state.guarded, None);
    course.reading.rate = new_connections(500.0);
    assert_eq!(verdicts(&mut course, 0.85, 140), [(DEAD / 1000 / 10 * 10, Verdict::Effective)]);
    // Nor without a counter in the policy.
    let mut course = Course::new();
    course.reading.rate = new_connections(10.0);
    assert_eq!(course.hold(1.5, 130), [(120, 58)]);
    assert_eq!(course.state.guarded, None);
    // A gap of a few rounds does not matter; what is older is forgotten.
    for (gap, is_guarded) in [(20, true), (30, false)] {
        let mut course = Course::new();
        (course.guard, course.reading.rate) = (Some(20.0), new_connections(10.0));
        assert_eq!(course.hold(1.5, 110 - gap), []);
        course.reading.rate = None;
        course.hold(1.5, gap);
        assert_eq!(course.state.guarded.is_some(), is_guarded, "{gap} s and one more round without a rate");
    }
}

#[test]
fn further_steps_wait_until_new_connections_are_measured() {
    for (guard, first) in [(Some(20.0), GUARDED), (None, DEAD / 1000 / 10 * 10)] {
        let mut course = guarded();
        (course.guard, course.disturbance) = (guard, Some(RELOAD));
        // Without a guard, steps share a verdict on this target and do not wait for it.
        assert_eq!(course.hold(1.5, 300).first().map(|(time, _)| *time), Some(first), "{guard:?}");
    }
}

#[test]
fn a_harmful_step_stays_while_the_task_count_is_critical() {
    let mut course = Course::new();
    (course.guard, course.reading.rate) = (Some(20.0), new_connections(10.0));
    course.tuning.per_hour = 20;
    assert_eq!(course.hold(2.6, 130), [(120, 50)]);
    course.reading.rate = new_connections(50.0);
    // Its effect is judged as always, and the next step follows.
    let steps = course.hold(CRITICAL + 0.2, 600);
    assert!(steps.iter().all(|(_, to)| *to < 50), "{steps:?}");
    assert_eq!(steps.first().map(|(time, _)| *time), Some(DEAD / 1000 / 10 * 10), "nothing waits for new connections");
    let still = course.state.guarded.expect("still guarded");
    assert_eq!((still.from, still.before.connections), (100, 10.0), "the level before the first of the steps");
    course.hold(CRITICAL + 0.2, 600);
    let mut taken = course.hold(1.9, 300);
    assert_eq!(taken.pop().map(|(_, to)| to), Some(100), "both are taken back when it is no longer critical");
    assert_eq!(course.state.efficacy, Efficacy::Harmful);

    let mut red = guarded();
    (red.reading.red, red.reading.rate) = (true, new_connections(50.0));
    assert_eq!(verdicts(&mut red, 1.4, 400).iter().filter(|(_, verdict)| *verdict == Verdict::Harmful).count(), 0);
}

#[test]
fn another_process_can_judge_a_guarded_step() {
    let mut course = guarded();
    let written = serde_json::to_string(&course.state).expect("a state");
    course.state = serde_json::from_str(&written).expect("what was written");
    course.reading.rate = new_connections(50.0);
    let judged = verdicts(&mut course, 1.5, 400);
    assert_eq!(judged.first(), Some(&(GUARDED, Verdict::Harmful)));
    assert_eq!(course.state.openness, 100);
}

#[test]
fn a_step_that_is_gone_or_long_past_is_guarded_no_more() {
    let course = |openness, age| {
        let mut course = Course::at(openness, |state| {
            let before = ConnectionRate { connections: 10.0, requests: None, nodes: 4.0 };
            state.guarded = Some(Guarded { decided: START - age, from: 70, window: 120_000, before });
        });
        (course.guard, course.reading.rate) = (Some(20.0), new_connections(50.0));
        verdicts(&mut course, 0.8, 200)
    };
    assert_eq!(course(50, 10 * MINUTE), [(110, Verdict::Harmful)]);
    assert_eq!(course(70, 10 * MINUTE), [], "the limits are relaxed that far again");
    assert_eq!(course(50, HOUR), [], "the load may be another one");
}

#[test]
fn other_counters_do_not_compare() {
    let counter = |metric: &str, max_per_second| NewConnections {
        metric: metric.into(),
        match_labels: [].into(),
        max_per_second,
        requests: None,
    };
    let kept = |guard| {
        let course = guarded();
        let config =
            |guard| Config { guard, ..Config::plain(course.declared.clone(), course.floor.clone(), course.tuning.clone()) };
        let mut driver = AdaptiveDriver::new(config(Some(counter("opened", 20))), course.state.clone(), None, START);
        driver.configure(config(guard));
        driver.state().guarded.is_some()
    };
    assert!(kept(Some(counter("opened", 20))) && kept(Some(counter("opened", 30))), "another maximum compares");
    assert!(!kept(Some(counter("accepted", 20))) && !kept(None));
}

#[test]
fn a_process_is_young_while_its_pools_fill() {
    let (declared, floor) = policy();
    let mut config = Config::plain(declared, floor, Tuning::of(None));
    assert_eq!((config.ages().most, config.ages().young), (90_000, 120_000), "twice the longest idle time");
    config.disturbance = Some(RELOAD);
    assert_eq!(config.ages().young, CLAIM, "until the connections of every pool can have come back");
}

#[test]
fn the_window_has_two_minutes_or_three_rounds() {
    for (tighten_after, interval, expected) in [(120, 10, 120), (300, 10, 120), (30, 10, 30), (1, 1, 3), (120, 60, 180)] {
        let tuning = Tuning { tighten_after: tighten_after * 1000, interval: interval * 1000, ..Tuning::of(None) };
        assert_eq!(guard::window(&tuning), expected * 1000);
    }
}

proptest::proptest! {
    #[test]
    fn whatever_the_status_says_of_the_loop_it_decides_and_goes_on_from_what_it_wrote(
        times in proptest::collection::vec(-377_705_023_201_000i64..=253_402_207_200_000, 8),
        numbers in proptest::collection::vec(proptest::num::u64::ANY, 8),
        amounts in proptest::collection::vec(proptest::num::f64::ANY, 4),
        pressure in 0.0f64..1e300,
        age in proptest::option::of(proptest::num::i64::ANY),
    ) {
        let time = |n: usize| jiff::Timestamp::from_millisecond(times[n]).expect("a time").to_string();
        let percent = |n: usize| numbers[n] % 101;
        let text = serde_json::json!({
            "opennessPercent": percent(0),
            "episode": {"since": time(0), "fromPercent": percent(1), "steps": numbers[2] % 256, "utilizationAtFirstStep": amounts[0]},
            "pending": {
                "decided": time(1), "inEffectSince": time(2), "waitMilliseconds": numbers[3] >> 1, "utilizationBefore": amounts[1],
                "utilizationSlope": amounts[2], "fromPercent": percent(4), "toPercent": percent(5), "expectedFall": amounts[3],
            },
            "guarded": {
                "decided": time(1), "fromPercent": percent(1), "windowMilliseconds": numbers[5] >> 1,
                "before": {"newConnectionsPerSecond": amounts[2], "requestsPerSecond": amounts[3], "nodes": amounts[0]},
            },
            "settleUntil": time(3),
            "changes": [{"tightened": time(4)}, {"relaxed": time(5)}, {}],
            "lockout": {"until": time(6), "times": numbers[6] % 256},
            "relaxBackoff": numbers[7] % 256,
            "relaxableSince": time(7),
        });
        let mut course = Course::new();
        // What cannot be read is as absent.
        course.state = serde_json::from_value(text).unwrap_or_default();
        course.reading.youngest = age;
        (course.guard, course.reading.rate) = (Some(20.0), new_connections(amounts[1].abs()));
        for _ in 0..3 {
            let outcome = course.look(pressure);
            let written = serde_json::to_string(&outcome.state).expect("a state");
            proptest::prop_assert!(outcome.state.openness <= 100);
            course.state = serde_json::from_str(&written).expect("what was written");
            proptest::prop_assert_eq!(&course.state, &outcome.state.stored());
            course.now += TICK;
        }
    }
}
