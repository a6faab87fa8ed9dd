// dashboard.mjs PROMETHEUS DASHBOARD.json: runs every query of the dashboard against a Prometheus that scrapes the operator, and
// checks the health of its rules. A query without a result would be an empty panel.
import { readFileSync } from "node:fs";

const [prometheus, path] = process.argv.slice(2);
const ask = async (route) => {
  const answer = await (await fetch(`${prometheus}/api/v1/${route}`)).json();
  if (answer.status !== "success") throw new Error(`${route}: ${answer.error}`);
  return answer.data;
};
const wrong = [];
const dashboard = JSON.parse(readFileSync(path, "utf8"));
let queries = 0;
for (const panel of dashboard.panels) {
  for (const { expr } of panel.targets ?? []) {
    // Replace the variables as Grafana does with everything selected.
    const query = expr.replaceAll("$namespace", ".*").replaceAll("$policy", ".*").replaceAll("$__rate_interval", "1m");
    if (query.includes("$")) wrong.push(`${panel.title}: the query has an unknown variable: ${query}`);
    const { result } = await ask(`query?query=${encodeURIComponent(query)}`);
    if (result.length === 0) wrong.push(`${panel.title}: no result for ${query}`);
    queries += 1;
  }
}
for (const variable of dashboard.templating.list.filter(({ type }) => type === "query")) {
  const [, metric, label] = /^label_values\(([a-z_]+)(?:\{.*\})?, ([a-z]+)\)$/.exec(variable.definition) ?? [];
  const values = await ask(`label/${label}/values?match[]=${encodeURIComponent(metric)}`);
  if (values.length === 0) wrong.push(`variable ${variable.name}: no values for ${variable.definition}`);
}
const rules = (await ask("rules")).groups.flatMap((group) => group.rules);
for (const rule of rules.filter((rule) => rule.health !== "ok")) wrong.push(`rule ${rule.name}: ${rule.health} ${rule.lastError ?? ""}`);
console.log(`${queries} queries, ${rules.length} rules`);
if (wrong.length > 0 || queries === 0 || rules.length === 0) {
  console.error(wrong.join("\n"));
  process.exit(1);
}
