//! Every condition that a status may hold, every reason that it may give, and every Event: one table each. The code builds conditions and
//! Events from these tables only, `docs/status.md` is generated from them, and alerts, runbooks and `GitOps` health checks are checked against
//! them.

use strum::EnumMessage as _;

/// The type of a condition. Its documentation says what `True` means.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display, strum::IntoStaticStr, strum::EnumIter, strum::EnumMessage,
)]
pub enum ConditionType {
    /// The policy is valid, and this generation is written to every node that answered. A suspended policy is ready.
    Ready,
    /// The policy is valid, and no older policy governs its target.
    Accepted,
    /// Every supported limit is stored on every node and was read back.
    Programmed,
    /// The running processes use the limits.
    InEffect,
    /// The operator is working on the policy. Present only while True.
    Reconciling,
    /// Only a person can solve the problem. Present only while True.
    Stalled,
    /// With `spec.adaptive`: enough nodes have a fresh task count to decide by.
    MetricsAvailable,
    /// With `spec.adaptive`: the task count reached 100% of the threshold, and has not been below 90% since.
    HighTaskCount,
    /// With `spec.adaptive`: adaptive control holds the limits below their declared values.
    Tightened,
    /// With `spec.adaptive`: the last tightening lowered the task count.
    TighteningEffective,
    /// With `spec.adaptive`: something keeps adaptive control from doing more.
    TighteningLimited,
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr, strum::EnumString)]
#[allow(missing_docs)] // Kubernetes' own three.
pub enum State {
    True,
    False,
    Unknown,
}

/// What one reason means, and on which conditions it stands with which status.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The reason.
    pub reason: Reason,
    /// The conditions that give it, each with the status that it then has.
    pub on: &'static [(ConditionType, State)],
    /// What happened.
    pub happened: &'static str,
    /// What to do; empty where nothing is to be done.
    pub fix: &'static str,
}

macro_rules! reasons {
    (
        variants { $($variant:ident)* }
        rows { $($($type:ident $state:ident),+: $reason:ident, $happened:literal, $fix:literal;)* }
    ) => {
        /// The reason of a condition. [`REASONS`] says what each means.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display, strum::IntoStaticStr, strum::EnumString, strum::EnumIter)]
        #[allow(missing_docs)] // What one means depends on its condition: see the table.
        pub enum Reason {
            $($variant,)*
        }

        /// What every reason means, in the order of the conditions.
        pub const REASONS: &[Row] = &[$(
            Row { reason: Reason::$reason, on: &[$((ConditionType::$type, State::$state)),+], happened: $happened, fix: $fix },
        )*];
    };
}

reasons! {
    variants {
        Accepted AsDeclared AtFloor AwaitingUptimeMatch BelowQuorum BudgetExhausted CertificateInvalid Conflicted Contended Drifted
        Effective FallbackHold Flapping Forbidden Fresh Harmful Holding IdleConnectionsMissing InEffect Ineffective InternalError Invalid Locked Measured
        MeasuredDifferently Measuring NewConnectionsMissing NoSeries NotAttributable NotInEffect NotLimited NotMeasured NotObserved NotTightened
        NothingToProgram OverThreshold Partial Paused Pending PoolsTooSmall Programmed ProgrammingFailed Progressing Propagating
        QueryFailed RefKeyNotFound RefNotFound RefNotPermitted Rejected Relaxing Released RestartForbidden RestartRequired RestartStalled Retrying
        RollingOut SeveralSeries SharedIdentity Stale Succeeded Suspended TargetNotFound Tightening Unauthorized UnderThreshold UpdateStopped
    }
    rows {
        Ready True: Succeeded,
            "Every node that answered holds the limits", "";
        Ready True: Suspended,
            "`spec.suspend` is true, so nothing is written", "Set `spec.suspend` to false to resume";
        Ready Unknown: Pending,
            "The operator has not looked at the policy yet", "Check that the operator runs and watches this namespace";
        Ready Unknown: Released,
            "The operator was uninstalled; the original settings are back, and nothing governs the target", "Install the operator again, or delete the policy";
        Ready False, Programmed False, Reconciling True: Progressing,
            "The limits are being written", "";
        Ready False, Programmed False: UpdateStopped,
            "A node has not answered since it was written, so the other nodes are not written", "Check the node that the message names, or remove it from the target; the update continues when it answers";
        Ready False: ProgrammingFailed,
            "No node answered, or a write failed", "Fix the cause that the message names; the operator retries";
        Ready False: InternalError,
            "The operator failed on this policy and retries; other policies are not affected", "Report it with the operator's log";
        Ready False: Unauthorized,
            "The node refuses the token: it is missing, malformed or expired (401)", "Correct the Secret of `tokenSecretRef`";
        Ready False, Stalled True: Forbidden,
            "The token or the operator lacks a right (403)", "Grant the right that the message names";
        Ready False: CertificateInvalid,
            "The server's certificate is not signed by the given CA, or the CA is not PEM", "Correct `caConfigMapRef`, or the server's certificate";
        Ready False, MetricsAvailable False: RefNotFound,
            "A Secret or ConfigMap that the policy refers to does not exist", "Create it, or correct the reference";
        Ready False, MetricsAvailable False: RefKeyNotFound,
            "A Secret or ConfigMap that the policy refers to lacks the key", "Add the key, or correct the reference";
        Ready False, Accepted False, Stalled True, MetricsAvailable False: RefNotPermitted,
            "An endpoint is outside `--allow-endpoints`, or a Service is of type ExternalName", "Use pods or a Service, or ask the administrator to list the endpoint";
        Ready False, Accepted False, MetricsAvailable False: TargetNotFound,
            "No pod, endpoint or Service matches", "Create one in the namespace of the policy, or correct `spec.target`";
        Ready False, Accepted False, Stalled True: Conflicted,
            "An older policy governs the same target, or another field manager owns the ConfigMap or its key", "Delete one of the policies, or change its target (for a ConfigMap, another key); the message names the other owner";
        Ready False, Accepted False, Stalled True, MetricsAvailable False: Invalid,
            "The policy contradicts itself or names no target", "Correct the field that the message names";
        Ready False, Programmed False, InEffect Unknown: NothingToProgram,
            "No node has a place for any declared limit", "Check that the policy points at the server that has these limits; `status.unsupported` lists them";

        Accepted True: Accepted,
            "The policy is valid and governs its target", "";
        Accepted True: SharedIdentity,
            "A policy in another namespace governs a cluster with the same UUID; both stay active", "If it is the same cluster, delete one of the policies";

        Programmed True: Programmed,
            "All nodes store the limits, and the operator read them back", "";
        Programmed False: Partial,
            "Some nodes do not answer", "Check the nodes in `status.nodes.worst`";
        Programmed False, InEffect False: Drifted,
            "Another client changed a node", "None: the operator restores the limit. With `driftPolicy: Report`, change it yourself";
        Programmed False, InEffect False: Contended,
            "Another client changed the same limit twice within 10 minutes of its correction; the operator leaves it alone for 10 minutes, then 20, 40 …", "Find the other client and stop it, or declare its value";

        InEffect True: InEffect,
            "The processes of all nodes use the limits", "";
        InEffect True: Measured,
            "With `spec.verify`: every server was measured to close idle connections at the programmed time", "";
        InEffect True: NotMeasured,
            "With `spec.verify`: the processes report the limits, and a server could not be measured", "Fix the cause that the message names";
        InEffect False: MeasuredDifferently,
            "With `spec.verify`: a server was measured to close idle connections at another time than programmed", "See the [runbook](runbooks/IdleConnMeasuredDifferently.md); the message has both times";
        InEffect False: RestartRequired,
            "The limits are stored, and the processes use them after the next start", "Restart the nodes in `status.pendingRestart`, or set `restart.policy: Rolling`";
        InEffect False: RollingOut,
            "A node is being restarted", "None; the message names the node and what delays its eviction";
        InEffect False: RestartStalled,
            "A restarted node did not come back within `restart.timeout`; no other node is restarted", "Repair the node that the message names";
        InEffect False: Propagating,
            "The file changed less than 3 minutes ago, and some pods still report the older one", "Wait";
        InEffect Unknown: NotObserved,
            "The operator has not observed what the processes use", "See Programmed; if all nodes store the limits, a restart confirms that their processes use them";
        HighTaskCount Unknown: NotObserved,
            "The tasks cannot be counted", "See MetricsAvailable";

        Reconciling True: Retrying,
            "The last attempt failed, and the operator retries", "Fix the cause in the message of Ready";
        Stalled True: Rejected,
            "The target refused the limits", "Change the policy; the message has the target's answer";

        MetricsAvailable True: Fresh,
            "The tasks of enough nodes are counted", "";
        MetricsAvailable True: IdleConnectionsMissing,
            "Tasks are counted, but a node lacks the gauge of `signal.idleConnections`, so the part of pooled connections is not known", "Correct the gauge's name or labels";
        MetricsAvailable True: NewConnectionsMissing,
            "Tasks are counted, but a node lacks a counter of `signal.newConnections`, so a step is not guarded against harm unless half of the nodes have it", "Correct the counter's name or labels";
        MetricsAvailable Unknown: Pending,
            "No node has been asked yet", "";
        MetricsAvailable False: Stale,
            "The last answers, or their timestamps, are too old", "Check the nodes' clocks and their metrics endpoint";
        MetricsAvailable False: BelowQuorum,
            "Too few nodes answer with metrics", "Fix the cause that the message names: an HTTP status, a redirect, a timeout";
        MetricsAvailable False: NoSeries,
            "The metrics page has no such gauge, or no number in it", "Correct `signal.metric` or `signal.matchLabels`";
        MetricsAvailable False: SeveralSeries,
            "Several series match", "Set `signal.matchLabels` or `signal.aggregation`";
        MetricsAvailable False: Unauthorized,
            "The metrics endpoint refuses access (401 or 403)", "Correct the token, or allow the operator to read the endpoint";
        MetricsAvailable False: Forbidden,
            "The operator may not read an object that `signal.prometheus` refers to", "Grant the right that the message names";
        MetricsAvailable False: QueryFailed,
            "The Prometheus query failed, or did not return one number", "Correct `signal.prometheus.query`";

        HighTaskCount True: OverThreshold,
            "The task count reached the threshold", "See Tightened and TighteningLimited";
        HighTaskCount False: UnderThreshold,
            "The task count is below the threshold", "";

        Tightened False: AsDeclared,
            "Nothing is tightened: the desired limits are the declared ones", "";
        Tightened True: Tightening,
            "The limits were tightened, and the effect is being measured", "";
        Tightened True: Holding,
            "The limits stay tightened until the task count falls", "";
        Tightened True: Relaxing,
            "The task count is low, and the limits are relaxed if it stays low", "";
        Tightened True: AtFloor,
            "The limits are at their floor", "See HighTaskCount";
        Tightened True: FallbackHold,
            "The tasks cannot be counted, so the limits stay where they are", "See MetricsAvailable";

        TighteningEffective True: Effective,
            "The last tightening lowered the task count", "";
        TighteningEffective False: Ineffective,
            "Tightening did not lower the task count; it is undone and not repeated for hours", "Look for another cause ([runbook](runbooks/IdleConnIneffective.md))";
        TighteningEffective False: Harmful,
            "Tightening made new connections more than twice as frequent; it is undone and not repeated for hours", "Raise `adaptive.floor` ([runbook](runbooks/IdleConnHarmful.md))";
        TighteningEffective Unknown: Measuring,
            "The last tightening has not been judged yet, or its verdict was inconclusive", "";
        TighteningEffective Unknown: AwaitingUptimeMatch,
            "Nodes restarted; the effect is judged when the processes are as old as before", "";
        TighteningEffective Unknown: NotAttributable,
            "Pooled connections are too few to be the cause", "Look for another cause, such as client connections";
        TighteningEffective Unknown: NotTightened,
            "Nothing has been tightened", "";

        TighteningLimited False: NotLimited,
            "No restriction is active; during an episode the message says what the next step waits for", "";
        TighteningLimited True: AtFloor,
            "The task count is above the threshold, and all limits are at their floor", "Lower `adaptive.floor`, or look for another cause";
        TighteningLimited True: BudgetExhausted,
            "The changes per hour or per day are used up", "Wait, or raise `adaptive.behavior.maxChangesPerHour`";
        TighteningLimited True: RestartForbidden,
            "Most nodes use the limits only after a restart", "Restart the nodes, or set `restart.policy: Rolling`";
        TighteningLimited True: NotInEffect,
            "Most nodes are not known to use the declared limits", "Let the nodes report what they use, or restart them";
        TighteningLimited True: PoolsTooSmall,
            "Emptying all pools would not bring the task count below the threshold", "Look for another cause, such as client connections";
        TighteningLimited True: Locked,
            "The last tightening did not lower the task count, or was harmful, so nothing is tightened for hours", "See TighteningEffective; the message says until when";
        TighteningLimited True: Flapping,
            "The limits had to be tightened again soon after relaxing, so relaxing is delayed", "See the [runbook](runbooks/IdleConnFlapping.md)";
        TighteningLimited True: Paused,
            "An annotation or `spec.suspend` pauses tightening", "Run `kubectl idleconn resume`, or set `spec.suspend` to false; the message names the cause";
    }
}

impl ConditionType {
    /// The status that the condition has for a reason; `None` where it never gives that reason.
    #[must_use]
    pub fn state(self, reason: Reason) -> Option<State> {
        let on = REASONS.iter().filter(|row| row.reason == reason).flat_map(|row| row.on);
        on.copied().find(|(type_, _)| *type_ == self).map(|(_, state)| state)
    }

    /// What True means.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.get_documentation().unwrap_or_default()
    }
}

/// The reason of an Event. Its documentation says what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr, strum::EnumIter, strum::EnumMessage)]
pub enum EventReason {
    /// The policy is valid and governs its target.
    Accepted,
    /// All nodes store the limits of this generation.
    Programmed,
    /// Nodes stopped answering; the note names one with the cause.
    Partial,
    /// A node has not answered since it was written, so the other nodes are not written.
    UpdateStopped,
    /// Another client changed a node.
    DriftDetected,
    /// The operator restored a limit that another client had changed.
    DriftCorrected,
    /// Another client keeps changing a limit; the operator leaves it alone for a while.
    Contended,
    /// An older policy governs the target, or another field manager owns the ConfigMap or its key.
    Conflicted,
    /// Nodes use the limits only after a restart.
    RestartRequired,
    /// The operator restarted a node, and the node uses the limits.
    NodeRestarted,
    /// A restarted node did not come back in time.
    RestartStalled,
    /// A server was measured to close idle connections at another time than programmed.
    MeasuredDifferently,
    /// The target refused the limits.
    Rejected,
    /// The policy could be better; once for each generation (see [advice](advice.md)).
    Advice,
    /// The policy was deleted and the original settings are back; the note counts the nodes, and those that no longer exist.
    Restored,
    /// Original settings could not be restored; the note names the node and the cause.
    RestoreAbandoned,
    /// The task count reached the threshold; once for each episode.
    HighTaskCount,
    /// Adaptive control tightened the limits; the note has the task count and what the step closes.
    Tightened,
    /// Adaptive control relaxed the limits.
    Relaxed,
    /// The limits reached their floor.
    ReachedFloor,
    /// A tightening did not lower the task count, or cannot.
    Ineffective,
    /// A tightening made new connections more than twice as frequent and is taken back; the note has both figures.
    Harmful,
    /// The tasks can no longer be counted.
    MetricsLost,
    /// The tasks can be counted again.
    MetricsRestored,
}

impl EventReason {
    /// Whether the Event is of type Warning; it is Normal otherwise.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        !matches!(
            self,
            Self::Accepted
                | Self::Programmed
                | Self::DriftCorrected
                | Self::NodeRestarted
                | Self::Restored
                | Self::Tightened
                | Self::Relaxed
                | Self::MetricsRestored
        )
    }

    /// What happened.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.get_documentation().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use strum::IntoEnumIterator as _;

    use super::*;

    #[test]
    fn every_reason_has_a_meaning_and_one_status_on_each_condition() {
        for reason in Reason::iter() {
            assert!(REASONS.iter().any(|row| row.reason == reason), "{reason} has no row");
        }
        let mut seen = BTreeSet::new();
        for row in REASONS {
            assert!(!row.happened.is_empty() && !row.on.is_empty(), "{}", row.reason);
            for (type_, state) in row.on {
                assert!(seen.insert((*type_, row.reason)), "{type_} {} has two rows", row.reason);
                let only_true = matches!(type_, ConditionType::Reconciling | ConditionType::Stalled);
                assert!(!only_true || *state == State::True, "{type_} is present only while True");
            }
        }
        for type_ in ConditionType::iter() {
            assert!(seen.iter().any(|(of, _)| *of == type_) && !type_.meaning().is_empty(), "{type_}");
        }
    }

    #[test]
    fn a_reason_is_read_back_as_it_was_written() {
        for reason in Reason::iter() {
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
        assert!("FromAnotherVersion".parse::<Reason>().is_err());
    }

    #[test]
    fn every_event_has_a_meaning() {
        assert!(EventReason::iter().all(|reason| !reason.meaning().is_empty()));
    }
}
