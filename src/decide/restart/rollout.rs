//! When a workload's pods are replaced, for a file that its processes read only when they start: once for a change, by
//! an annotation of its pod template. The workload's own rule decides how many pods may be out of service meanwhile.
//!
//! As with restarts, nothing begins before it is recorded, and each action is repeated until its result is observed.

use super::{Act, RestartPlan, RestartReport, in_time};
use crate::api::{
    restart::{Restart, RestartPolicy},
    status::{RestartControl, Restarting},
};

/// The workload that keeps the pods running, as the API server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Deployment, StatefulSet or DaemonSet.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The hash that its pods were started for.
    pub hash: Option<String>,
    /// Whether all its pods have its current template and are available.
    pub complete: bool,
}

/// Everything that the decision depends on.
pub struct RolloutInput<'a> {
    /// `spec.restart`.
    pub spec: &'a Restart,
    /// Whether a rollout may begin: nothing is suspended, and what is pending is worth it.
    pub may_begin: bool,
    /// The hash of the written file; `None` while the file does not hold everything that is desired.
    pub hash: Option<&'a str>,
    /// Whether some pod is not known to use it.
    pub pending: bool,
    /// The workload that keeps the pods running; `None` where that is none that can be rolled out.
    pub workload: Option<&'a Workload>,
    /// What is recorded.
    pub control: &'a RestartControl,
    /// The current time (Unix seconds).
    pub now: i64,
}

/// Decides the next actions.
#[must_use]
pub fn step(input: &RolloutInput<'_>) -> RestartPlan {
    let mut outcome = RestartPlan::new(input.control, input.now);
    let permitted = input.may_begin && input.spec.policy == RestartPolicy::Rolling;
    let Some(workload) = input.workload else {
        outcome.control.nodes.clear();
        outcome.said = (permitted && input.pending).then_some(RestartReport::NoWorkload);
        return outcome;
    };
    let name = format!("{} {}", workload.kind, workload.name);
    if let Some(current) = outcome.control.nodes.first().cloned() {
        let told = workload.hash.as_ref() == Some(&current.uid);
        if !told && (!permitted || input.hash != Some(&current.uid)) {
            // Called off, or overtaken by another change, before the workload was changed.
            outcome.control.nodes.clear();
        } else if told && workload.complete {
            outcome.control.nodes.clear();
            outcome.finished.push(name.clone());
        } else {
            if !told {
                outcome.acts.push(roll(workload, &current.uid));
            }
            outcome.said = Some(if in_time(input.spec, &current, input.now) {
                RestartReport::Rolling(name)
            } else {
                RestartReport::Stalled(name)
            });
            return outcome;
        }
    }
    let Some(hash) = input.hash.filter(|_| permitted && input.pending) else { return outcome };
    if workload.hash.as_deref() == Some(hash) {
        // Its pods were started for this file, and some do not report that: another start would change nothing.
        return outcome;
    }
    if !workload.complete {
        outcome.said = Some(RestartReport::Unavailable(name));
    } else if outcome.control.begun.len() >= input.spec.max_per_day as usize {
        outcome.said = Some(RestartReport::Budget);
    } else {
        outcome.control.begun.push(input.now);
        outcome.control.nodes.push(Restarting { node: name.clone(), pod: String::new(), uid: hash.to_owned(), since: input.now });
        outcome.said = Some(RestartReport::Rolling(name));
        outcome.acts.push(roll(workload, hash));
    }
    outcome
}

fn roll(workload: &Workload, hash: &str) -> Act {
    Act::Roll { kind: workload.kind.clone(), name: workload.name.clone(), hash: hash.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    struct Scene {
        spec: Restart,
        may_begin: bool,
        hash: Option<&'static str>,
        pending: bool,
        workload: Option<Workload>,
        control: RestartControl,
    }

    impl Scene {
        /// A change that no pod uses yet.
        fn new() -> Self {
            Self {
                spec: Restart { policy: RestartPolicy::Rolling, ..Restart::default() },
                may_begin: true,
                hash: Some("new"),
                pending: true,
                workload: Some(Workload {
                    kind: "Deployment".into(),
                    name: "gw".into(),
                    hash: Some("old".into()),
                    complete: true,
                }),
                control: RestartControl::default(),
            }
        }

        /// Recorded, and not carried out yet.
        fn begun() -> Self {
            let mut scene = Self::new();
            scene.control = scene.at(NOW).control;
            scene
        }

        fn at(&self, now: i64) -> RestartPlan {
            let Self { spec, may_begin, hash, pending, workload, control } = self;
            step(&RolloutInput {
                spec,
                may_begin: *may_begin,
                hash: *hash,
                pending: *pending,
                workload: workload.as_ref(),
                control,
                now,
            })
        }

        fn workload(&mut self) -> &mut Workload {
            self.workload.as_mut().expect("a workload")
        }
    }

    fn told() -> Vec<Act> {
        vec![Act::Roll { kind: "Deployment".into(), name: "gw".into(), hash: "new".into() }]
    }

    const NAME: &str = "Deployment gw";

    #[test]
    fn a_change_is_rolled_out_once() {
        let mut scene = Scene::new();
        let outcome = scene.at(NOW);
        assert_eq!((outcome.acts, outcome.said), (told(), Some(RestartReport::Rolling(NAME.into()))));
        assert_eq!((outcome.control.begun.clone(), outcome.control.nodes[0].uid.as_str()), (vec![NOW], "new"));
        scene.control = outcome.control;
        // The operator died before it changed the workload: the action is repeated, and not counted again.
        let outcome = scene.at(NOW + 9);
        assert_eq!((outcome.acts, outcome.control.begun), (told(), vec![NOW]));
        scene.workload().hash = Some("new".into());
        scene.workload().complete = false;
        let outcome = scene.at(NOW + 20);
        assert_eq!((outcome.acts, outcome.said), (vec![], Some(RestartReport::Rolling(NAME.into()))));
        assert_eq!(scene.at(NOW + 600).said, Some(RestartReport::Rolling(NAME.into())));
        assert_eq!(scene.at(NOW + 601).said, Some(RestartReport::Stalled(NAME.into())));
        scene.workload().complete = true;
        let outcome = scene.at(NOW + 30);
        assert_eq!((outcome.finished.clone(), outcome.said.clone()), (vec![NAME.to_owned()], None));
        scene.control = outcome.control;
        assert_eq!(scene.at(NOW + 31).acts, vec![], "even if a pod still reports another file");
    }

    #[test]
    fn the_budget_is_of_any_day() {
        let mut scene = Scene::new();
        scene.control.begun = vec![NOW - 86_399];
        assert_eq!((scene.at(NOW).said, scene.at(NOW).acts), (Some(RestartReport::Budget), vec![]));
        assert_eq!(scene.at(NOW + 1).acts, told());
        scene.spec.max_per_day = 2;
        assert_eq!(scene.at(NOW).acts, told());
    }

    #[test]
    fn nothing_begins_that_may_not_or_need_not() {
        let quiet: [fn(&mut Scene); 5] = [
            |scene| scene.may_begin = false,
            |scene| scene.spec.policy = RestartPolicy::Never,
            |scene| scene.hash = None,
            |scene| scene.pending = false,
            |scene| scene.workload().hash = Some("new".into()),
        ];
        for change in quiet {
            let mut scene = Scene::new();
            change(&mut scene);
            assert_eq!(scene.at(NOW), RestartPlan::default());
        }
        let mut scene = Scene::new();
        scene.workload().complete = false;
        assert_eq!(
            (scene.at(NOW).said, scene.at(NOW).acts),
            (Some(RestartReport::Unavailable(NAME.into())), vec![]),
            "one thing at a time"
        );
        scene.workload = None;
        assert!(matches!(scene.at(NOW).said, Some(RestartReport::NoWorkload)));
        scene.pending = false;
        assert_eq!(scene.at(NOW), RestartPlan::default());
    }

    #[test]
    fn what_was_not_told_yet_is_called_off_and_what_was_told_is_seen_through() {
        for call_off in
            [|scene: &mut Scene| scene.may_begin = false, |scene: &mut Scene| scene.spec.policy = RestartPolicy::Never]
        {
            let mut scene = Scene::begun();
            call_off(&mut scene);
            let outcome = scene.at(NOW + 1);
            assert_eq!((outcome.acts, outcome.control.nodes, outcome.said), (vec![], vec![], None));
            let mut scene = Scene::begun();
            call_off(&mut scene);
            scene.workload().hash = Some("new".into());
            scene.workload().complete = false;
            assert_eq!(scene.at(NOW + 1).said, Some(RestartReport::Rolling(NAME.into())));
        }
        let mut scene = Scene::begun();
        scene.hash = Some("newer");
        scene.spec.max_per_day = 2;
        let outcome = scene.at(NOW + 1);
        assert_eq!((outcome.control.nodes[0].uid.as_str(), outcome.control.begun.len()), ("newer", 2));
    }
}
