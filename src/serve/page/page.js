"use strict";

/** Time without any data, heartbeats included, after which a stream counts as lost (ms). */
const SILENCE = 5000;
/** Delays between attempts to reconnect (ms). */
const WAITS = [500, 1000, 2000, 5000];

const $ = (id) => document.getElementById(id);
let token = "";
let wanted = decodeURIComponent(location.hash.slice(2));
/** Whether the user has just chosen a policy: the page moves the focus to it when it is shown. */
let chosen = false;

/** Sets only text that differs, so that the focus and the selection of the user stay where they are. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Shows one row for each item, by key. A row that stays keeps its element. */
function rows(table, items, key, fresh, fill) {
  const body = table.tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  items.forEach((item, at) => {
    let row = old.get(key(item));
    old.delete(key(item));
    if (!row) {
      row = fresh(item);
      row.dataset.key = key(item);
    }
    fill(row, item);
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
  });
  for (const row of old.values()) row.remove();
}

function cells(count, numbers = []) {
  const row = document.createElement("tr");
  row.append(make("th", { scope: "row" }));
  for (let n = 1; n < count; n++) row.append(make("td", numbers.includes(n) ? { class: "number" } : {}));
  return row;
}

const percent = (value) => (value === undefined ? "unknown" : `${value}%`);
const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const condition = (policy, type) => policy.conditions.find((one) => one.type === type);

// ---- requests

async function ask(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (token) headers.authorization = `Bearer ${token}`;
  return fetch(path, { ...options, headers, cache: "no-store" });
}

async function message(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The operator returned HTTP status ${response.status}`;
  }
}

/** Stream of snapshots that reconnects automatically. EventSource is not used, because it cannot send a token. */
class Line {
  constructor(name, path, show) {
    Object.assign(this, { name, path, show, heard: 0, tries: 0, id: "", state: "connecting", why: "" });
    this.run();
  }

  /** Reconnects with the current path and token. */
  again() {
    this.tries = 0;
    this.wake?.();
    this.stop?.abort();
  }

  async run() {
    for (;;) {
      await this.once().catch(() => {});
      if (this.state === "live") this.state = "stale";
      line();
      const wait = WAITS[Math.min(this.tries++, WAITS.length - 1)];
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, wait);
      });
    }
  }

  async once() {
    this.stop = new AbortController();
    const headers = this.id ? { "last-event-id": this.id } : {};
    const response = await ask(this.path(), { headers, signal: this.stop.signal });
    if (!response.ok) {
      this.state = "refused";
      this.why = await message(response);
      if (response.status === 401 || response.status === 403) gate(this.why);
      return;
    }
    this.heard = Date.now();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const watch = setInterval(() => {
      if (Date.now() - this.heard > SILENCE) this.stop.abort();
    }, 1000);
    try {
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        this.heard = Date.now();
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        events.forEach((event) => this.take(event));
      }
    } finally {
      clearInterval(watch);
    }
  }

  take(event) {
    const fields = {};
    for (const field of event.split("\n")) {
      const at = field.indexOf(": ");
      if (at > 0) fields[field.slice(0, at)] = field.slice(at + 2);
    }
    if (fields.event === "refused") {
      this.state = "refused";
      this.why = JSON.parse(fields.data).error.message;
    } else if (fields.event === "snapshot") {
      this.id = fields.id ?? this.id;
      this.tries = 0;
      this.state = "live";
      $("gate").hidden = true;
      this.show(JSON.parse(fields.data));
    }
    line();
  }
}

function line() {
  const lines = [policies, connections].filter(Boolean);
  const worst = ["refused", "stale", "connecting"].find((state) => lines.some((one) => one.state === state)) ?? "live";
  const one = lines.find((candidate) => candidate.state === worst);
  const age = one.heard ? `last update ${Math.round((Date.now() - one.heard) / 1000)}s ago` : "no update yet";
  $("line").dataset.state = worst;
  say($("line"), {
    live: "Live",
    connecting: "Connecting…",
    stale: `Stale: ${age}; reconnecting`,
    refused: `Error: ${one.why}`,
  }[worst]);
}

function gate(why) {
  say($("gate-why"), why);
  $("gate").hidden = false;
}

$("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  policies.again();
  connections.again();
});

// ---- policies

function choose(name) {
  wanted = name;
  policies.again();
}

addEventListener("hashchange", () => {
  choose(decodeURIComponent(location.hash.slice(2)));
  chosen = true;
});

function showPolicies(snapshot) {
  $("standby").hidden = snapshot.acting;
  $("fleet-empty").hidden = snapshot.policies.length > 0;
  const name = (policy) => `${policy.namespace}/${policy.name}`;
  const fresh = (policy) => {
    const row = cells(8, [3, 4, 5]);
    const href = `#/${encodeURIComponent(name(policy))}`;
    row.cells[0].append(make("a", { href }, name(policy)));
    return row;
  };
  rows($("fleet"), snapshot.policies, name, fresh, (row, policy) => {
    if (name(policy) === wanted) row.cells[0].firstChild.setAttribute("aria-current", "true");
    else row.cells[0].firstChild.removeAttribute("aria-current");
    const ready = condition(policy, "Ready");
    const tightened = condition(policy, "Tightened");
    say(row.cells[1], policy.flushes.length ? `${policy.target} (changes close connections)` : policy.target);
    row.cells[1].title = policy.flushes.map(({ message }) => message).join("; ");
    say(row.cells[2], policy.suspended ? `${policy.mode}, suspended` : policy.mode);
    say(row.cells[3], policy.mode === "Disabled" ? "–" : percent(policy.utilizationPercent));
    row.cells[3].classList.toggle("bad", policy.utilizationPercent >= 100);
    say(row.cells[4], policy.opennessPercent === undefined ? "–" : percent(policy.opennessPercent));
    const updating = policy.update ? (policy.update.blockedBy ? " (update stopped)" : " (updating)") : "";
    say(row.cells[5], `${policy.nodes?.summary ?? "–"}${updating}`);
    say(row.cells[6], policy.deleting ? "deleting" : ready ? (ready.status === "True" ? "yes" : `${ready.status === "False" ? "no" : "unknown"}: ${ready.reason}`) : "unknown");
    row.cells[6].className = ready?.status === "True" ? "good" : ready?.status === "False" ? "bad" : "wait";
    say(row.cells[7], tightened?.reason ?? "as declared");
  });
  showPolicy(snapshot.policy);
}

function showPolicy(policy) {
  $("policy").hidden = !policy;
  if (!policy) return;
  say($("policy-title"), `${policy.namespace}/${policy.name}`);
  if (chosen && $("policy-title").textContent === wanted) {
    chosen = false;
    $("policy-title").focus();
  }
  const idle = policy.idleConnections;
  const cost = idle === undefined || !policy.flushes.length ? [] : [`The nodes have ${idle} idle ${idle === 1 ? "connection" : "connections"} now.`];
  const rate = policy.newConnectionsPerSecond;
  const opened = rate === undefined ? [] : [`The nodes have about ${rate} new ${rate === 1 ? "connection" : "connections"} per second.`];
  say($("flushes"), policy.flushes.map(({ message }) => `${message}.`).concat(cost, opened).join(" "));
  chart(policy);
  const list = $("conditions");
  const said = policy.conditions.map((one) => [`${one.type}: ${one.status}`, `${one.reason}: ${one.message}`]);
  if (list.dataset.said !== JSON.stringify(said)) {
    list.dataset.said = JSON.stringify(said);
    list.replaceChildren(...said.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]));
  }
  $("history-empty").hidden = policy.history.length > 0;
  rows($("history"), policy.history, (one) => one.time, () => cells(4, [1]), (row, one) => {
    say(row.cells[0], new Date(one.time).toLocaleTimeString());
    say(row.cells[1], `${one.fromPercent}% → ${one.toPercent}%`);
    say(row.cells[2], one.reason);
    say(row.cells[3], one.verdict ?? (one.toPercent > one.fromPercent ? "–" : "pending"));
  });
  showNodes(policy);
}

async function showNodes({ namespace, name }) {
  const response = await ask(`api/policies/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}/nodes`).catch(() => undefined);
  if (`${namespace}/${name}` !== wanted) return;
  if (!response?.ok) {
    say($("nodes-note"), response ? await message(response) : "");
    return;
  }
  const { seen, nodes } = (await response.json()).data;
  say($("nodes-note"), `Nodes as observed at ${new Date(seen).toLocaleTimeString()}`);
  const flat = (limits) => Object.fromEntries(Object.entries(limits).flatMap(([group, fields]) => Object.entries(fields).map(([field, value]) => [`${group}.${field}`, String(value)])));
  const items = nodes.flatMap((node) => {
    const [desired, programmed, inEffect, measured] = [node.desired, node.programmed, node.inEffect, node.measured].map(flat);
    const limits = [...new Set([...Object.keys(desired), ...Object.keys(measured)])];
    return (limits.length ? limits : [""]).map((limit, at) => ({ node, limit, first: at === 0, desired: desired[limit], programmed: programmed[limit], inEffect: inEffect[limit], measured: measured[limit] }));
  });
  rows($("nodes"), items, (item) => `${item.node.unit} ${item.node.name} ${item.limit}`, () => cells(8, [1]), (row, { node, limit, desired, programmed, inEffect, measured }) => {
    say(row.cells[0], node.name);
    say(row.cells[1], node.tasks === undefined ? (node.gap ? "unknown" : "–") : String(node.tasks));
    row.cells[1].title = node.gap ?? "";
    say(row.cells[2], limit || "–");
    say(row.cells[3], desired ?? "–");
    // A limit can be measured even if the target has no such setting.
    const governed = desired !== undefined;
    say(row.cells[4], governed ? programmed ?? "none" : "–");
    say(row.cells[5], governed ? inEffect ?? "unknown" : "–");
    say(row.cells[6], measured ?? "–");
    row.cells[4].className = governed && programmed !== desired ? "bad" : "";
    row.cells[5].className = governed && inEffect !== desired ? "wait" : "";
    row.cells[6].className = governed && measured !== undefined && measured !== programmed ? "bad" : "";
    say(row.cells[7], node.error ? `${node.stage}: ${node.error}` : node.stage);
  });
}

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Task count and threshold on the left scale, openness on the right one. A missing sample leaves a gap. */
function chart(policy) {
  const now = policy.tasks === undefined ? "The task count is unknown" : `${count(policy.tasks, "task")}, ${percent(policy.utilizationPercent)} of the threshold of ${policy.threshold}`;
  const openness = policy.opennessPercent === undefined ? "" : `; openness ${policy.opennessPercent}% (100% = as declared, 0% = at the floor)`;
  const decided = policy.history.length ? `; last decision: ${policy.history[0].fromPercent}% to ${policy.history[0].toPercent}%` : "";
  say($("chart-said"), `${now}${openness}${decided}`);
  const trend = policy.trend.map((moment) => ({ ...moment, at: Date.parse(moment.time) }));
  const parts = [];
  // The drawing is as wide as its element, so that the text has its nominal size.
  const wide = Math.max(280, Math.round($("chart").clientWidth));
  $("chart").setAttribute("viewBox", `0 0 ${wide} 240`);
  if (trend.length > 1) {
    const [left, right, top, bottom] = [48, wide - 48, 12, 212];
    const [from, to] = [trend[0].at, trend[trend.length - 1].at];
    const most = Math.max(1, ...trend.flatMap(({ tasks, threshold }) => [tasks ?? 0, threshold ?? 0])) * 1.1;
    const x = (at) => left + ((right - left) * (at - from)) / Math.max(1, to - from);
    const y = (share) => bottom - (bottom - top) * share;
    for (const share of [0, 0.5, 1]) {
      parts.push(svg("line", { class: "grid", x1: left, x2: right, y1: y(share), y2: y(share) }));
      parts.push(svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, Math.round(most * share)));
      parts.push(svg("text", { x: right + 6, y: y(share) + 4 }, `${share * 100}%`));
    }
    parts.push(svg("text", { x: left, y: 232 }, new Date(from).toLocaleTimeString()));
    parts.push(svg("text", { x: right, y: 232, "text-anchor": "end" }, new Date(to).toLocaleTimeString()));
    const path = (value) => {
      let drawing = false;
      return trend.map((moment) => {
        const share = value(moment);
        const step = share === undefined ? "" : `${drawing ? "L" : "M"}${x(moment.at).toFixed(1)},${y(share).toFixed(1)}`;
        drawing = share !== undefined;
        return step;
      }).join("");
    };
    const of = (value) => (value === undefined ? undefined : value / most);
    parts.push(svg("path", { class: "openness", d: path((moment) => moment.opennessPercent / 100) }));
    parts.push(svg("path", { class: "threshold", d: path((moment) => of(moment.threshold)) }));
    parts.push(svg("path", { class: "tasks", d: path((moment) => of(moment.tasks)) }));
    for (const one of policy.history) {
      const at = Date.parse(one.time);
      if (at < from || at > to) continue;
      parts.push(svg("line", { class: "decision", x1: x(at), x2: x(at), y1: top, y2: bottom }));
      parts.push(svg("circle", { class: "mark", cx: x(at), cy: top, r: 4 }));
      const late = x(at) > (left + right) / 2;
      parts.push(svg("text", { x: x(at) + (late ? -8 : 8), y: top + 16, "text-anchor": late ? "end" : "start" }, `${one.fromPercent}% → ${one.toPercent}%`));
    }
  } else {
    parts.push(svg("text", { x: wide / 2, y: 120, "text-anchor": "middle" }, "No samples yet"));
  }
  $("chart").replaceChildren(...parts);
}

// ---- connections

function showConnections({ overview, health, providers }) {
  say($("pool-said"), `${overview.totalActiveConnections} active and ${overview.totalIdleConnections} idle connections to ${count(overview.totalProviders, "provider")}; ${count(overview.totalRequests, "request")}, ${overview.overallReuseRate}% on a reused connection${health.healthy ? "; no problems found" : ""}`);
  const issues = $("issues");
  if (issues.dataset.said !== JSON.stringify(health.issues)) {
    issues.dataset.said = JSON.stringify(health.issues);
    issues.replaceChildren(...health.issues.map((issue) => make("li", {}, issue)));
  }
  $("pool-empty").hidden = providers.length > 0;
  const fresh = (one) => {
    const row = cells(8, [2, 3, 4, 5, 6]);
    const button = make("button", { type: "button", class: "grave", "aria-label": `Close the connections of ${one.provider} over ${one.protocol}` }, "Close…");
    button.addEventListener("click", () => destroy(one.provider, one.protocol));
    row.cells[7].append(button);
    return row;
  };
  rows($("pool"), providers, (one) => `${one.provider} ${one.protocol}`, fresh, (row, one) => {
    say(row.cells[0], one.provider);
    say(row.cells[1], one.protocol);
    say(row.cells[2], String(one.connections.active));
    say(row.cells[3], String(one.connections.idle));
    say(row.cells[4], String(one.performance.totalRequests));
    say(row.cells[5], `${one.performance.reuseRate}%`);
    say(row.cells[6], one.connections.total ? `${Math.round(one.performance.averageConnectionAge)}s` : "–");
  });
}

function destroy(provider, protocol) {
  say($("ask-what"), `The operator closes the idle connections of ${provider} over ${protocol} now, and the active ones after their current request. The next request opens a new connection.`);
  const dialog = $("ask");
  dialog.returnValue = "no";
  dialog.addEventListener("close", async () => {
    if (dialog.returnValue !== "yes") return;
    const response = await ask(`api/connections/destroy/${encodeURIComponent(provider)}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ protocol }),
    }).catch(() => undefined);
    if (!response) say($("done"), "The operator did not answer; the connections may still be open");
    else if (!response.ok) say($("done"), await message(response));
    else {
      const { closed, closing } = (await response.json()).data;
      say($("done"), `${provider}: ${count(closed, "connection")} closed, ${closing} will close after their current request`);
    }
  }, { once: true });
  dialog.showModal();
}

// ---- start

let policies, connections;
policies = new Line("policies", () => (wanted ? `api/policies/stream?policy=${encodeURIComponent(wanted)}` : "api/policies/stream"), showPolicies);
connections = new Line("connections", () => "api/connections/stream", showConnections);
setInterval(line, 1000);
