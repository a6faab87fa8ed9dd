import assert from 'node:assert/strict';
import http from 'node:http';
import { once } from 'node:events';
import { test } from 'node:test';

import { Pool } from '../pool.js';
import { Watcher, hashOf, parse } from '../settings.js';

test('a file with an error is refused as a whole', () => {
  for (const text of ['', '{}', '{"enabled": true, "globl": {}}', '{"enabled": true, "global": {"maxSocket": 1}}',
    '{"enabled": true, "global": {"timeout": "30s"}}', '{"enabled": true, "providers": {"a": {"timeout": -1}}}']) {
    assert.throws(() => parse(text), text);
  }
  assert.equal(hashOf('a: 1\n'), '37b128c59f1f5097');
});

test('a change applies to the running pool, and no request is lost', async () => {
  const sockets = new Set();
  const server = http.createServer((request, response) => setTimeout(() => response.end('ok'), 20));
  server.keepAliveTimeout = 60_000;
  server.on('connection', (socket) => { sockets.add(socket); socket.once('close', () => sockets.delete(socket)); });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const pool = new Pool();
  const get = () => new Promise((resolve, reject) => {
    http.get({ host: '127.0.0.1', port: server.address().port, agent: pool.agent('a', 'http:') }, (answer) => {
      answer.resume().once('end', () => resolve(answer.statusCode));
    }).once('error', reject);
  });
  const many = (n) => Promise.all(Array.from({ length: n }, get));
  pool.apply(parse('{"enabled": true, "global": {"keepAlive": true, "maxFreeSockets": 50, "freeSocketTimeout": 30000}, "providers": {}}'));
  await many(20);
  assert.equal(pool.status().idle, 20);
  const underWay = many(20);
  pool.apply(parse('{"enabled": true, "global": {"keepAlive": true, "maxSockets": 5, "maxFreeSockets": 2}, "providers": {}}'));
  assert.deepEqual(new Set(await underWay), new Set([200]));
  const later = many(20);
  assert.ok(pool.status().active <= 5);
  assert.deepEqual(new Set(await later), new Set([200]));
  assert.ok(pool.status().idle <= 2);
  // The connections of the old agent are closed; only those that the new one keeps remain.
  while (sockets.size > 2) await once([...sockets][0], 'close');
  pool.apply(parse('{"enabled": true, "global": {"maxSockets": 5}, "providers": {"a": {"maxSockets": 1}}}'));
  const one = many(3);
  assert.equal(pool.status().active, 1, 'a provider has its own limit');
  await one;
  pool.destroy();
  server.close();
});

test('a watcher that is stopped during a look does not look again', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const watcher = new Watcher('/nowhere', () => {});
  let looks = 0;
  let finish;
  watcher.look = () => {
    looks += 1;
    return new Promise((resolve) => { finish = resolve; });
  };
  watcher.start(100);
  t.mock.timers.tick(100);
  watcher.stop();
  finish();
  await new Promise(setImmediate);
  t.mock.timers.tick(1000);
  assert.equal(looks, 1);
});
