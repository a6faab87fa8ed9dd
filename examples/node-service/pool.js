// Agents by provider, whose settings can be changed while they are in use.

import Agent from 'agentkeepalive';

const { HttpsAgent } = Agent;

/** Maps settings to the options of agentkeepalive. Settings that are left out keep the agent's defaults. */
function options(settings) {
  const { maxSocketLifetime, ...others } = settings;
  return { keepAlive: true, ...others, ...(maxSocketLifetime === undefined ? {} : { socketActiveTTL: maxSocketLifetime }) };
}

/** Lets an old agent finish its requests. It keeps no connections after them. */
function retire(agent) {
  agent.maxFreeSockets = 0;
  Object.values(agent.freeSockets).flat().forEach((socket) => socket.destroy());
}

export class Pool {
  #settings = { enabled: true, global: {}, providers: {} };
  #agents = new Map();

  /** Replaces all agents; `undefined` restores the defaults of agentkeepalive. */
  apply(settings = { enabled: true, global: {}, providers: {} }) {
    this.#settings = settings;
    const old = [...this.#agents.values()];
    this.#agents.clear();
    old.forEach(retire);
  }

  /** Returns the agent of a provider, for http: or https:. */
  agent(provider, protocol) {
    const key = `${provider} ${protocol}`;
    if (!this.#agents.has(key)) {
      const { enabled, global, providers } = this.#settings;
      const wanted = { ...options({ ...global, ...(providers[provider] ?? {}) }), ...(enabled ? {} : { keepAlive: false }) };
      this.#agents.set(key, protocol === 'https:' ? new HttpsAgent(wanted) : new Agent(wanted));
    }
    return this.#agents.get(key);
  }

  /** Returns the current numbers of active and idle connections and of waiting requests. */
  status() {
    const count = (lists) => Object.values(lists).reduce((sum, list) => sum + list.length, 0);
    const all = { active: 0, idle: 0, waiting: 0 };
    for (const agent of this.#agents.values()) {
      all.active += count(agent.sockets);
      all.idle += count(agent.freeSockets);
      all.waiting += count(agent.requests);
    }
    return all;
  }

  destroy() {
    this.#agents.forEach((agent) => agent.destroy());
  }
}
