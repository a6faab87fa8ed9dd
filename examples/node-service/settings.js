// The file that idleconn-operator writes in the format http-connection-pool: an HttpConnectionPool object, times in milliseconds.

import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';

const FIELDS = ['maxSockets', 'maxFreeSockets', 'timeout', 'keepAlive', 'keepAliveMsecs', 'freeSocketTimeout', 'maxSocketLifetime'];

/** Checks one set of settings. An unknown name is an error, so that settings apply completely or not at all. */
function checked(where, settings) {
  for (const [name, value] of Object.entries(settings)) {
    const type = name === 'keepAlive' ? 'boolean' : 'number';
    if (!FIELDS.includes(name)) throw new Error(`${where}: unknown setting ${name}; use ${FIELDS.join(', ')}`);
    if (typeof value !== type || value < 0) throw new Error(`${where}: ${name} must be a ${type === 'number' ? 'number of at least 0' : type}`);
  }
  return settings;
}

/** Parses the text of the file. */
export function parse(text) {
  const { enabled, global = {}, providers = {}, ...others } = JSON.parse(text);
  if (typeof enabled !== 'boolean' || Object.keys(others).length > 0) throw new Error('not an HttpConnectionPool');
  checked('global', global);
  Object.entries(providers).forEach(([name, settings]) => checked(`providers.${name}`, settings));
  return { enabled, global, providers };
}

/** The first 16 hexadecimal digits of the SHA-256 of the file. */
export function hashOf(text) {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}

/** Polls a file and applies its settings, or `undefined` if the file does not exist. */
export class Watcher {
  #text;
  #timer;
  #stopped = false;

  constructor(file, apply) {
    this.file = file;
    this.apply = apply;
    this.hash = '';
  }

  async look() {
    let text;
    try {
      text = await readFile(this.file, 'utf8');
    } catch (error) {
      if (error.code !== 'ENOENT') return console.error(`${this.file}: ${error.message}; the current settings stay in use`);
    }
    if (text === this.#text && text !== undefined) return;
    const same = text === this.#text;
    this.#text = text;
    try {
      const settings = text === undefined ? undefined : parse(text);
      if (same) return;
      this.apply(settings);
      this.hash = text === undefined ? '' : hashOf(text);
    } catch (error) {
      console.error(`${this.file}: ${error.message}; the current settings stay in use`);
    }
  }

  start(every) {
    // One look after the other, so that a slow disk cannot reorder them.
    const again = () => {
      if (!this.#stopped) this.#timer = setTimeout(() => this.look().finally(again), every);
    };
    again();
  }

  // Finishes the current look, and starts no other.
  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }
}
