// main.mjs URL REQUESTS AT_ONCE: sends the requests with one keep-alive agent that has the settings of the operator's pool, and
// prints the time.
import https from "node:https";
import { HttpsAgent } from "agentkeepalive";

const [url, requests, atOnce] = process.argv.slice(2);
const agent = new HttpsAgent({ maxSockets: 50, maxFreeSockets: 10, timeout: 30_000, freeSocketTimeout: 15_000 });
const ask = () => new Promise((resolve, reject) => {
  https.get(url, { agent }, (response) => {
    let body = "";
    response.on("data", (piece) => (body += piece));
    response.on("end", () => (body === "ok" ? resolve() : reject(new Error(`answered ${response.statusCode} ${body}`))));
  }).on("error", reject);
});
let left = Number(requests);
const began = performance.now();
await Promise.all(Array.from({ length: Number(atOnce) }, async () => {
  while (left-- > 0) await ask();
}));
console.log(`${((performance.now() - began) / 1000).toFixed(1)}s`);
agent.destroy();
