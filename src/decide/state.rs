//! What the loop remembers, and how it is written down so that another process can go on from it.
//!
//! What is written fits in a few hundred bytes and changes only with a decision, a verdict or the beginning or end of a window. What
//! changes with every sample ([`Watched`]) is not written: it is won back within a few samples.

use std::fmt::Write as _;

use super::openness::Percent;

/// Most changes that are remembered: the largest budget for a day.
pub const MOST_CHANGES: usize = 60;
/// Uptimes (milliseconds) at which the pressure of a life is noted, so that lives can be compared.
pub const MARKS: [i64; 9] = [60_000, 120_000, 300_000, 600_000, 1_200_000, 2_400_000, 4_800_000, 10_800_000, 21_600_000];

/// Pressure (thousandths) at [`MARKS`].
pub type Curve = [Option<u32>; MARKS.len()];

/// Which way a change went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Towards the floor.
    Tighten,
    /// Towards what is declared.
    Relax,
}

/// What came of the last tightening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

const EFFICACIES: [Efficacy; 7] = [
    Efficacy::NotTightened,
    Efficacy::Measuring,
    Efficacy::AwaitingUptimeMatch,
    Efficacy::Effective,
    Efficacy::Ineffective,
    Efficacy::NotAttributable,
    Efficacy::PoolsTooSmall,
];

/// A time of too many tasks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Episode {
    /// When it began.
    pub since: i64,
    /// The openness it began at.
    pub from: Percent,
    /// Pressure at the first step.
    pub base: Option<f64>,
    /// Steps so far.
    pub steps: u8,
    /// The openness after the last step that helped.
    pub helped: Option<Percent>,
    /// Steps in a row that did not.
    pub failed: u8,
    /// The pools' part of the tasks, as the last step showed it.
    pub learned: Option<f64>,
}

impl Episode {
    /// One in which nothing has been done yet.
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
    /// Since when the nodes use it; `None` as long as they do not.
    pub since: Option<i64>,
    /// How long after that it is judged (milliseconds).
    pub wait: i64,
    /// Pressure before.
    pub before: f64,
    /// How fast the pressure rose before, a second.
    pub slope: f64,
    /// Openness before.
    pub from: Percent,
    /// Openness after.
    pub to: Percent,
    /// The share of the tasks that should go, where the pools' share is known.
    pub expected: Option<f64>,
    /// Where it takes a restart: what the life before looked like.
    pub life: Option<Life>,
}

/// A process's life, for comparison at equal uptime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Life {
    /// Pressure at [`MARKS`].
    pub curve: Curve,
    /// Uptime and pressure (thousandths) when it was last looked at.
    pub last: Option<(i64, u32)>,
}

/// No tightening before a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lockout {
    /// Until when.
    pub until: i64,
    /// How often in a row; each doubles the next.
    pub times: u8,
}

/// What is seen anew with every sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watched {
    /// When something was last looked at; `None` before the first look.
    pub at: Option<i64>,
    /// Pressure for tightening, smoothed over a short time.
    pub fast: f64,
    /// Pressure for relaxing, smoothed over a longer one.
    pub slow: f64,
    /// Since when the count has been level, and at what (see `adapt`).
    pub plateau: Option<(i64, f64)>,
    /// Whether the averages have had a sample since this process began.
    pub primed: bool,
    /// How long the windows have run (milliseconds).
    pub high_for: i64,
    /// See above.
    pub low_for: i64,
    /// See above.
    pub floor_for: i64,
    /// See above.
    pub fresh_for: i64,
    /// See above.
    pub missing_for: i64,
    /// See above.
    pub red_for: i64,
    /// Whether it could not act at the last look.
    pub held: bool,
    /// The life of the youngest process.
    pub life: Life,
}

/// Where the loop stands. All times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The openness that is wanted.
    pub openness: Percent,
    /// The time of too many tasks that is going on.
    pub episode: Option<Episode>,
    /// The step that has not been judged.
    pub pending: Option<Pending>,
    /// No change before this.
    pub dead_until: i64,
    /// Changes of the last 24 hours, oldest first.
    pub changes: Vec<(i64, Way)>,
    /// The openness that was last known to be enough; 100 where none was.
    pub proved: Percent,
    /// Where a step that did not help is to be taken back to.
    pub rollback: Option<Percent>,
    /// No tightening for now.
    pub lockout: Option<Lockout>,
    /// By how much the window for relaxing is longer, 1 to 8.
    pub patience: u8,
    /// What came of the last tightening.
    pub efficacy: Efficacy,
    /// Since when there is room (only below full openness).
    pub low_since: Option<i64>,
    /// Whether it goes by the fallback.
    pub fallback: bool,
    /// Seen anew.
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
            watched: Watched::default(),
        }
    }
}

impl State {
    /// Written down, without what is seen anew. Two states that are written alike decide alike from then on.
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
                    // A load, in the texts of former versions.
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
            text.put('f', &[EFFICACIES.iter().position(|e| e == efficacy).and_then(|n| i64::try_from(n).ok()).unwrap_or(0)]);
        }
        if let Some(since) = low_since {
            text.put('l', &[*since]);
        }
        if *fallback {
            text.put('g', &[1]);
        }
        text.0
    }

    /// Read back. What cannot be read is left as it is at the beginning: a state from another version must not stop the loop.
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
                    let efficacy = at(0).and_then(|n| usize::try_from(n).ok()).and_then(|n| EFFICACIES.get(n));
                    state.efficacy = efficacy.copied().unwrap_or_default();
                }
                'l' => state.low_since = at(0),
                'g' => state.fallback = true,
                _ => {}
            }
        }
        state
    }
}

#[allow(clippy::cast_possible_truncation)] // Pressures and shares.
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

/// As it is written, so that going on in memory and going on from what was written are the same.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    of_thousandths(thousandths(value))
}

/// The same for slopes.
#[must_use]
pub fn rounded_slope(value: f64) -> f64 {
    of_millionths(millionths(value))
}

/// No time, and nothing in thousandths, is beyond this (2^53). What is written down may be forged, and is reckoned with.
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
            (proptest::option::of(time), any::<bool>()),
        )
            .prop_map(
                |(
                    (openness, episode, pending, dead_until, changes),
                    (proved, rollback, lockout, patience, efficacy),
                    (low, fallback),
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
                    efficacy: EFFICACIES[efficacy],
                    low_since: low,
                    fallback,
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
