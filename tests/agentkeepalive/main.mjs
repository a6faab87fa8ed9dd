// main.mjs URL REQUESTS CONCURRENCY: sends REQUESTS requests over one keep-alive agent with the pool's settings, and prints the time they took.
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
