//! What adaptive control remembers, and how the status stores it so that another process can continue from it.
//!
//! The stored text has a few hundred bytes and changes only with a decision, a verdict, or the beginning or end of a
//! window. What changes with every sample ([`Watched`]) is not stored: a few samples restore it.

use std::fmt::Write as _;

use strum::IntoEnumIterator as _;

use super::openness::Percent;

/// The number of changes that are remembered: the largest budget for a day.
pub const MOST_CHANGES: usize = 60;
/// Uptimes (milliseconds) at which the utilization of a process is recorded, so that processes can be compared.
pub const MARKS: [i64; 9] = [60_000, 120_000, 300_000, 600_000, 1_200_000, 2_400_000, 4_800_000, 10_800_000, 21_600_000];

/// Utilization (thousandths) at [`MARKS`].
pub type Curve = [Option<u32>; MARKS.len()];

/// The direction of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Towards the floor.
    Tighten,
    /// Towards the declared limits.
    Relax,
}

/// The effect of the last tightening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::EnumIter)]
#[allow(missing_docs)] // The reasons of TighteningEffective.
pub enum Efficacy {
    #[default]
    NotTightened,
    Measuring,
    AwaitingUptimeMatch,
    Effective,
    Ineffective,
    NotAttributable,
    PoolsTooSmall,
}

/// A period with too many tasks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Episode {
    /// When it began.
    pub since: i64,
    /// The openness at which it began.
    pub from: Percent,
    /// Utilization at the first step.
    pub base: Option<f64>,
    /// Steps taken so far.
    pub steps: u8,
    /// The openness after the last step that helped.
    pub helped: Option<Percent>,
    /// Steps in a row that did not help.
    pub failed: u8,
    /// The pooled share of the tasks, as the last step showed it.
    pub learned: Option<f64>,
}

impl Episode {
    /// An episode without steps.
    #[must_use]
    pub const fn begin(since: i64, from: Percent) -> Self {
        Self { since, from, base: None, steps: 0, helped: None, failed: 0, learned: None }
    }
}

/// A step that has not been judged yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// When it was decided.
    pub decided: i64,
    /// Since when the nodes use it; `None` while they do not.
    pub since: Option<i64>,
    /// How long after `since` it is judged (milliseconds).
    pub wait: i64,
    /// Utilization before.
    pub before: f64,
    /// The rise of the utilization before, per second.
    pub slope: f64,
    /// Openness before.
    pub from: Percent,
    /// Openness after.
    pub to: Percent,
    /// The expected fall of the task count, as a share, if the pools' share is known.
    pub expected: Option<f64>,
    /// If the step takes a restart: the process before it.
    pub life: Option<Life>,
}

/// A process's utilization by uptime, for comparison at equal uptime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Life {
    /// Utilization at [`MARKS`].
    pub curve: Curve,
    /// Uptime (milliseconds) and utilization (thousandths) when it was last observed.
    pub last: Option<(i64, u32)>,
}

/// No tightening until a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lockout {
    /// When it ends.
    pub until: i64,
    /// The number of earlier lock-outs in a row; each doubles the next.
    pub times: u8,
}

/// What is derived again from the samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watched {
    /// When the signal was last evaluated; `None` before the first evaluation.
    pub at: Option<i64>,
    /// Utilization for tightening: the fast average.
    pub fast: f64,
    /// Utilization for relaxing: the slow average.
    pub slow: f64,
    /// Since when the utilization has been level, and at what value (see `adapt`).
    pub plateau: Option<(i64, f64)>,
    /// Whether the averages have had a sample since this process started.
    pub primed: bool,
    /// How long there have been too many tasks (milliseconds).
    pub high_for: i64,
    /// How long there has been room (milliseconds).
    pub low_for: i64,
    /// How long the limits have been at their floor with too many tasks (milliseconds).
    pub floor_for: i64,
    /// How long there has been a quorum (milliseconds).
    pub fresh_for: i64,
    /// How long there has been no quorum (milliseconds).
    pub missing_for: i64,
    /// How long a node has reported itself as critical (milliseconds).
    pub red_for: i64,
    /// Whether a pause or the mode blocked changes at the last evaluation.
    pub held: bool,
    /// The youngest process.
    pub life: Life,
}

/// The state of adaptive control. All times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The desired openness.
    pub openness: Percent,
    /// The present period with too many tasks, if there is one.
    pub episode: Option<Episode>,
    /// The step that has not been judged yet.
    pub pending: Option<Pending>,
    /// No change before this time.
    pub dead_until: i64,
    /// Changes of the last 24 hours, oldest first.
    pub changes: Vec<(i64, Way)>,
    /// The last openness that was known to be enough; 100 if there was none.
    pub proved: Percent,
    /// The openness to return to, after a step that did not help.
    pub rollback: Option<Percent>,
    /// The lock-out of tightening, if there is one.
    pub lockout: Option<Lockout>,
    /// The factor by which the window for relaxing is longer, 1 to 8.
    pub patience: u8,
    /// The effect of the last tightening.
    pub efficacy: Efficacy,
    /// Since when there has been room (only below full openness).
    pub low_since: Option<i64>,
    /// Whether the fallback is active.
    pub fallback: bool,
    /// Whether the tasks could not be counted when they were last looked for.
    pub lost: bool,
    /// What is derived again from the samples.
    pub watched: Watched,
}

impl Default for State {
    fn default() -> Self {
        Self {
            openness: 100,
            episode: None,
            pending: None,
            dead_until: 0,
            changes: Vec::new(),
            proved: 100,
            rollback: None,
            lockout: None,
            patience: 1,
            efficacy: Efficacy::NotTightened,
            low_since: None,
            fallback: false,
            lost: false,
            watched: Watched::default(),
        }
    }
}

impl State {
    /// Encodes the state without `watched`. Two states with the same encoding decide alike from then on.
    #[must_use]
    pub fn encode(&self) -> String {
        // Destructured without `..`, so that a new field cannot be forgotten here.
        let Self {
            openness,
            episode,
            pending,
            dead_until,
            changes,
            proved,
            rollback,
            lockout,
            patience,
            efficacy,
            low_since,
            fallback,
            lost,
            watched: _,
        } = self;
        let mut text = Writer(String::new());
        text.put('u', &[i64::from(*openness)]);
        if let Some(Episode { since, from, base, steps, helped, failed, learned }) = episode {
            text.optional(
                'e',
                &[
                    Some(*since),
                    Some((*from).into()),
                    base.map(thousandths),
                    Some((*steps).into()),
                    helped.map(Into::into),
                    Some((*failed).into()),
                    learned.map(thousandths),
                ],
            );
        }
        if let Some(Pending { decided, since, wait, before, slope, from, to, expected, life }) = pending {
            text.optional(
                'p',
                &[
                    Some(*decided),
                    *since,
                    Some(*wait),
                    Some(thousandths(*before)),
                    Some(millionths(*slope)),
                    // The load, which earlier versions stored here.
                    None,
                    Some((*from).into()),
                    Some((*to).into()),
                    expected.map(thousandths),
                ],
            );
            if let Some(Life { curve, last }) = life {
                let mut numbers: Vec<_> = curve.iter().map(|mark| mark.map(i64::from)).collect();
                numbers.extend([last.map(|l| l.0), last.map(|l| i64::from(l.1))]);
                text.optional('c', &numbers);
            }
        }
        if *dead_until != 0 {
            text.put('d', &[*dead_until]);
        }
        if !changes.is_empty() {
            text.changes(changes);
        }
        if *proved != 100 {
            text.put('v', &[i64::from(*proved)]);
        }
        if let Some(to) = rollback {
            text.put('b', &[i64::from(*to)]);
        }
        if let Some(Lockout { until, times }) = lockout {
            text.put('k', &[*until, i64::from(*times)]);
        }
        if *patience != 1 {
            text.put('w', &[i64::from(*patience)]);
        }
        if *efficacy != Efficacy::NotTightened {
            text.put('f', &[Efficacy::iter().position(|e| e == *efficacy).and_then(|n| i64::try_from(n).ok()).unwrap_or(0)]);
        }
        if let Some(since) = low_since {
            text.put('l', &[*since]);
        }
        if *fallback {
            text.put('g', &[1]);
        }
        if *lost {
            text.put('m', &[1]);
        }
        text.0
    }

    /// Decodes a state. What cannot be read gets its initial value: a state from another version must not stop adaptive
    /// control.
    #[must_use]
    pub fn decode(text: &str) -> Self {
        let mut state = Self::default();
        for token in text.split(' ') {
            let Some(key) = token.chars().next() else { continue };
            let rest = token.get(key.len_utf8()..).unwrap_or_default();
            let list: Vec<Option<i64>> = rest.split(',').map(number).collect();
            let at = |n: usize| list.get(n).copied().flatten();
            let small = |n: usize| at(n).and_then(|n| u8::try_from(n).ok());
            let percent = |n: usize| small(n).filter(|n| *n <= 100);
            match key {
                'u' => state.openness = percent(0).unwrap_or(100),
                'e' => {
                    state.episode = at(0).map(|since| Episode {
                        since,
                        from: percent(1).unwrap_or(100),
                        base: at(2).map(of_thousandths),
                        steps: small(3).unwrap_or(0),
                        helped: percent(4),
                        failed: small(5).unwrap_or(0),
                        learned: at(6).map(of_thousandths),
                    });
                }
                'p' => {
                    state.pending = at(0).map(|decided| Pending {
                        decided,
                        since: at(1),
                        wait: at(2).unwrap_or(0),
                        before: at(3).map_or(1.0, of_thousandths),
                        slope: at(4).map_or(0.0, of_millionths),
                        from: percent(6).unwrap_or(100),
                        to: percent(7).unwrap_or(100),
                        expected: at(8).map(of_thousandths),
                        life: None,
                    });
                }
                'c' => {
                    let mark = |n: usize| at(n).and_then(|n| u32::try_from(n).ok());
                    let mut life = Life::default();
                    for (n, place) in life.curve.iter_mut().enumerate() {
                        *place = mark(n);
                    }
                    life.last = at(MARKS.len()).zip(mark(MARKS.len() + 1));
                    if let Some(pending) = &mut state.pending {
                        pending.life = Some(life);
                    }
                }
                'd' => state.dead_until = at(0).unwrap_or(0),
                'x' => state.changes = changes(rest),
                'v' => state.proved = percent(0).unwrap_or(100),
                'b' => state.rollback = percent(0),
                'k' => state.lockout = at(0).map(|until| Lockout { until, times: small(1).unwrap_or(0) }),
                'w' => state.patience = small(0).unwrap_or(1).clamp(1, 8),
                'f' => {
                    let efficacy = at(0).and_then(|n| usize::try_from(n).ok()).and_then(|n| Efficacy::iter().nth(n));
                    state.efficacy = efficacy.unwrap_or_default();
                }
                'l' => state.low_since = at(0),
                'g' => state.fallback = true,
                'm' => state.lost = true,
                _ => {}
            }
        }
        state
    }
}

#[allow(clippy::cast_possible_truncation)] // Utilizations and shares.
fn thousandths(value: f64) -> i64 {
    (value * 1000.0).round() as i64
}

#[allow(clippy::cast_possible_truncation)] // See above.
fn millionths(value: f64) -> i64 {
    (value * 1_000_000.0).round() as i64
}

#[allow(clippy::cast_precision_loss)] // See above.
fn of_thousandths(value: i64) -> f64 {
    value as f64 / 1000.0
}

#[allow(clippy::cast_precision_loss)] // See above.
fn of_millionths(value: i64) -> f64 {
    value as f64 / 1_000_000.0
}

/// Rounds as the encoding does, so that a process that continues from memory and one that continues from the status
/// decide alike.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    of_thousandths(thousandths(value))
}

/// The same for slopes.
#[must_use]
pub fn rounded_slope(value: f64) -> f64 {
    of_millionths(millionths(value))
}

/// No time and no value in thousandths is larger than this (2^53). The status may be forged, so the decoder clamps its
/// numbers.
const MAX_NUMBER: i64 = 1 << 53;

fn number(text: &str) -> Option<i64> {
    i64::from_str_radix(text, 36).ok().map(|number| number.clamp(-MAX_NUMBER, MAX_NUMBER))
}

fn changes(text: &str) -> Vec<(i64, Way)> {
    let mut all = Vec::new();
    let mut time = 0i64;
    let mut rest = text;
    while let Some(next) = rest.find(['T', 'R']) {
        let way = if rest[next..].starts_with('T') { Way::Tighten } else { Way::Relax };
        let Some(delta) = number(&rest[..next]) else { return Vec::new() };
        time = time.saturating_add(delta.saturating_mul(1000)).clamp(-MAX_NUMBER, MAX_NUMBER);
        all.push((time, way));
        rest = &rest[next + 1..];
    }
    all
}

struct Writer(String);

impl Writer {
    fn put(&mut self, key: char, numbers: &[i64]) {
        let numbers: Vec<_> = numbers.iter().map(|n| Some(*n)).collect();
        self.optional(key, &numbers);
    }

    fn optional(&mut self, key: char, numbers: &[Option<i64>]) {
        self.key(key);
        for (n, number) in numbers.iter().enumerate() {
            if n > 0 {
                self.0.push(',');
            }
            if let Some(number) = number {
                self.number(*number);
            }
        }
    }

    fn changes(&mut self, changes: &[(i64, Way)]) {
        self.key('x');
        let mut before = 0;
        for (time, way) in changes {
            self.number(time / 1000 - before);
            self.0.push(if *way == Way::Tighten { 'T' } else { 'R' });
            before = time / 1000;
        }
    }

    fn key(&mut self, key: char) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push(key);
    }

    fn number(&mut self, number: i64) {
        if number < 0 {
            self.0.push('-');
        }
        let mut rest = number.unsigned_abs();
        let mut digits = Vec::new();
        loop {
            digits.push(char::from_digit(u32::try_from(rest % 36).unwrap_or(0), 36).unwrap_or('0'));
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{}", digits.iter().rev().collect::<String>());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> impl Strategy<Value = State> {
        let time = 1_700_000_000_000i64..1_800_000_000_000;
        let life = (
            proptest::array::uniform9(proptest::option::of(0u32..5000)),
            proptest::option::of((0i64..1_000_000_000, 0u32..5000)),
        )
            .prop_map(|(curve, last)| Life { curve, last });
        let pending = (
            (time.clone(), proptest::option::of(time.clone()), 0i64..600_000, 0i64..9000, -9000i64..9000),
            (0u8..=100, 0u8..=100, proptest::option::of(0i64..1000), proptest::option::of(life)),
        )
            .prop_map(|((decided, since, wait, before, slope), (from, to, expected, life))| Pending {
                decided,
                since,
                wait,
                before: of_thousandths(before),
                slope: of_millionths(slope),
                from,
                to,
                expected: expected.map(of_thousandths),
                life,
            });
        let episode = (
            time.clone(),
            0u8..=100,
            proptest::option::of(0i64..9000),
            0u8..50,
            proptest::option::of(0u8..=100),
            0u8..5,
            proptest::option::of(0i64..1000),
        )
            .prop_map(|(since, from, base, steps, helped, failed, learned)| Episode {
                since,
                from,
                base: base.map(of_thousandths),
                steps,
                helped,
                failed,
                learned: learned.map(of_thousandths),
            });
        let changes = proptest::collection::vec((1i64..86_400, any::<bool>()), 0..MOST_CHANGES).prop_map(|deltas| {
            let mut at = 1_700_000_000;
            deltas
                .into_iter()
                .map(|(delta, tighten)| {
                    at += delta % 1440;
                    (at * 1000, if tighten { Way::Tighten } else { Way::Relax })
                })
                .collect::<Vec<_>>()
        });
        (
            (
                0u8..=100,
                proptest::option::of(episode),
                proptest::option::of(pending),
                prop_oneof![Just(0i64), time.clone()],
                changes,
            ),
            (0u8..=100, proptest::option::of(0u8..=100), proptest::option::of((time.clone(), 0u8..4)), 1u8..=8, 0usize..7),
            (proptest::option::of(time), any::<bool>(), any::<bool>()),
        )
            .prop_map(
                |(
                    (openness, episode, pending, dead_until, changes),
                    (proved, rollback, lockout, patience, efficacy),
                    (low, fallback, lost),
                )| State {
                    openness,
                    episode,
                    pending,
                    dead_until,
                    changes,
                    proved,
                    rollback,
                    lockout: lockout.map(|(until, times)| Lockout { until, times }),
                    patience,
                    efficacy: Efficacy::iter().nth(efficacy).unwrap_or_default(),
                    low_since: low,
                    fallback,
                    lost,
                    watched: Watched::default(),
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(state in state()) {
            prop_assert_eq!(State::decode(&state.encode()), state);
        }

        #[test]
        fn anything_can_be_read(text in ".{0,80}") {
            let state = State::decode(&text);
            prop_assert!(state.openness <= 100 && (1..=8).contains(&state.patience));
        }

        #[test]
        fn it_is_small(state in state()) {
            prop_assert!(state.encode().len() <= 440, "{}", state.encode());
        }
    }

    #[test]
    fn numbers_are_written_in_few_characters() {
        let written = |number| {
            let mut writer = Writer(String::new());
            writer.number(number);
            writer.0
        };
        assert_eq!([0, 35, 36, -1, i64::MIN].map(written), ["0", "z", "10", "-1", "-1y2p0ij32e8e8"]);
    }
}
