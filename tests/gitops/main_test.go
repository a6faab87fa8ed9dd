package main

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

type condition struct{ Type, Status, Reason, Message string }

// policy returns a policy with a status as the operator writes it; see docs/status.md.
func policy(generation, observed int64, deleted bool, conditions ...condition) string {
	metadata := map[string]any{"name": "gw", "namespace": "shop", "generation": generation}
	if deleted {
		metadata["deletionTimestamp"] = "2026-11-21T20:00:00Z"
	}
	var list []any
	for _, c := range conditions {
		list = append(list, map[string]any{
			"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message, "lastTransitionTime": "2026-11-21T20:00:00Z", "observedGeneration": observed,
		})
	}
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": metadata,
		"status": map[string]any{"observedGeneration": observed, "conditions": list},
	})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func TestGitOpsHealth(t *testing.T) {
	script, err := os.ReadFile("../../deploy/argocd/health.lua")
	if err != nil {
		t.Fatal(err)
	}
	ready := condition{"Ready", "True", "Succeeded", "All 3 nodes hold the declared limits"}
	for _, c := range []struct{ what, object, expected string }{
		{"the default status of the CRD", policy(1, -1, false, condition{"Ready", "Unknown", "Pending", "Waiting for the operator"}),
			"kstatus InProgress, health Progressing (The operator has not reconciled this generation yet)"},
		{"an edit before the next reconcile", policy(2, 1, false, ready),
			"kstatus InProgress, health Progressing (The operator has not reconciled this generation yet)"},
		{"ready", policy(2, 2, false, ready),
			"kstatus Current, health Healthy (All 3 nodes hold the declared limits)"},
		{"ready, with tightened limits and a restart due", policy(2, 2, false, ready, condition{"Tightened", "True", "Holding", "Limits are held at 55%"}, condition{"TighteningLimited", "True", "AtFloor", "All limits are at their floor"}, condition{"InEffect", "False", "RestartRequired", "2 nodes"}),
			"kstatus Current, health Healthy (All 3 nodes hold the declared limits)"},
		{"suspended", policy(2, 2, false, condition{"Ready", "True", "Suspended", "Nothing is written while spec.suspend is true"}),
			"kstatus Current, health Suspended (Nothing is written while spec.suspend is true)"},
		{"in progress", policy(2, 2, false, condition{"Ready", "False", "Progressing", "1 of 3 nodes hold the declared limits"}, condition{"Reconciling", "True", "Progressing", "1 of 3"}),
			"kstatus InProgress, health Progressing (1 of 3 nodes hold the declared limits)"},
		{"stalled", policy(2, 2, false, condition{"Ready", "False", "Conflicted", "shop/older governs these nodes"}, condition{"Stalled", "True", "Conflicted", "shop/older governs these nodes"}),
			"kstatus Failed, health Degraded (shop/older governs these nodes)"},
		{"being deleted", policy(2, 2, true, ready),
			"kstatus Terminating, health Healthy (All 3 nodes hold the declared limits)"},
	} {
		var out strings.Builder
		if err := report(strings.NewReader(c.object), &out, string(script)); err != nil {
			t.Errorf("%s: %v", c.what, err)
		} else if got := strings.TrimPrefix(strings.TrimSpace(out.String()), "gw: "); got != c.expected {
			t.Errorf("%s:\n got %s\nwant %s", c.what, got, c.expected)
		}
	}
}
