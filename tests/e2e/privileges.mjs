// privileges.mjs AUDIT-LOG ROLES.json USER: compares the requests in the audit log with the permissions in the roles.
// Fails if a permission is neither used nor documented here, and if a request lacked its permission.
import { readFileSync } from "node:fs";

// Permissions that this run does not use, with their purpose. docs/security.md has the same table.
const documented = new Map([
  ["create coordination.k8s.io/leases", "recreates a deleted Lease; the chart installs the first one"],
  ["create /configmaps", "a patch that creates the object; the log calls it a patch"],
  ["create /pods/eviction", "restart.policy Rolling on AIStore"],
  ["get events.k8s.io/events", "an Event of the same name exists already"],
  ["get /secrets", "tokens and CAs that a policy names"],
  ["get /services", "targets named by a Service"],
  ["list discovery.k8s.io/endpointslices", "targets named by a Service"],
  ...["deployments", "statefulsets", "daemonsets"].flatMap((kind) =>
    ["get", "patch"].map((verb) => [`${verb} apps/${kind}`, "restart.policy Rolling on a ConfigMap target"]),
  ),
]);

const [log, roles, user] = process.argv.slice(2);
const used = new Map();
const refused = [];
for (const line of readFileSync(log, "utf8").split("\n")) {
  if (!line.includes(user)) continue;
  const event = JSON.parse(line);
  if (event.user.username !== user || !event.objectRef?.resource) continue;
  const { apiGroup = "", resource, subresource, namespace = "", name = "" } = event.objectRef;
  const right = `${event.verb} ${apiGroup}/${resource}${subresource ? `/${subresource}` : ""}`;
  used.set(right, (used.get(right) ?? 0) + 1);
  if (event.responseStatus?.code === 403) refused.push(`${right} ${namespace}/${name}: ${event.responseStatus.message ?? ""}`);
}
const granted = new Set();
for (const role of JSON.parse(readFileSync(roles, "utf8")).items) {
  for (const rule of role.rules ?? []) {
    for (const group of rule.apiGroups) for (const resource of rule.resources) for (const verb of rule.verbs) granted.add(`${verb} ${group}/${resource}`);
  }
}
for (const right of [...granted].sort()) console.log(`${String(used.get(right) ?? 0).padStart(6)} × ${right}${used.has(right) ? "" : `: ${documented.get(right) ?? "NEVER USED"}`}`);
const idle = [...granted].filter((right) => !used.has(right) && !documented.has(right));
const stale = [...documented.keys()].filter((right) => !granted.has(right));
// A refused create in a namespace that is being deleted is not a missing permission.
const missing = refused.filter((said) => !said.includes("because it is being terminated"));
for (const [what, list] of [["granted, but never used", idle], ["documented, but not granted", stale], ["requested without permission", missing]]) {
  if (list.length > 0) {
    console.error(`${what}:\n  ${list.join("\n  ")}`);
    process.exitCode = 1;
  }
}
if (used.size === 0) {
  console.error(`the audit log has no requests of ${user}; check the name`);
  process.exitCode = 1;
}
