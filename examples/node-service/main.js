// A service whose outgoing connections are governed by an IdleConnectionPolicy through a mounted file.
//
// GET /ask?url=URL&provider=NAME sends a request to URL. /metrics reports connections, /config-hash the hash of the settings.

import http from 'node:http';
import https from 'node:https';
import { parseArgs } from 'node:util';
import { Gauge, Registry, collectDefaultMetrics } from 'prom-client';

import { Pool } from './pool.js';
import { Watcher, parse } from './settings.js';
import { readFileSync } from 'node:fs';

const { values: flags } = parseArgs({
  options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string', default: '8080' },
    config: { type: 'string', default: '/etc/idleconn/http.json' },
    every: { type: 'string', default: '2000' },
    print: { type: 'boolean', default: false },
  },
});

if (flags.print) {
  console.log(JSON.stringify(parse(readFileSync(flags.config, 'utf8'))));
  process.exit(0);
}

const registry = new Registry();
collectDefaultMetrics({ register: registry });
const pool = new Pool();
const watcher = new Watcher(flags.config, (settings) => pool.apply(settings));
new Gauge({
  name: 'idleconn_client_connections', help: 'Connections to upstreams by state; waiting counts requests that wait for a connection.', labelNames: ['state'],
  registers: [registry],
  collect() { Object.entries(pool.status()).forEach(([state, n]) => this.set({ state }, n)); },
});
new Gauge({
  name: 'idleconn_config_info', help: '1 for the settings in use: the first 16 hexadecimal digits of the SHA-256 of their file.',
  labelNames: ['hash'], registers: [registry],
  collect() { this.reset(); if (watcher.hash) this.set({ hash: watcher.hash }, 1); },
});

function ask(target, provider, response) {
  const url = new URL(target);
  const { get } = url.protocol === 'https:' ? https : http;
  const request = get(url, { agent: pool.agent(provider, url.protocol) }, (answer) => {
    response.writeHead(answer.statusCode);
    answer.pipe(response);
  });
  request.on('error', (error) => {
    if (!response.headersSent) response.writeHead(502);
    response.end(`${error.message}\n`);
  });
}

const server = http.createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://service');
  try {
    if (pathname === '/metrics') {
      response.setHeader('content-type', registry.contentType);
      response.end(await registry.metrics());
    } else if (pathname === '/config-hash') response.end(`${watcher.hash}\n`);
    else if (pathname === '/ask') ask(searchParams.get('url'), searchParams.get('provider') ?? '', response);
    else response.end('ok\n');
  } catch (error) {
    response.writeHead(400).end(`${error.message}\n`);
  }
});

await watcher.look();
watcher.start(Number(flags.every));
server.listen(Number(flags.port), flags.host);
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => { watcher.stop(); pool.destroy(); server.close(); server.closeIdleConnections(); });
}
