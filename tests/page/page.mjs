// page.mjs OPEN GATED [SCREENSHOTS]: opens the live page in a real Chromium. OPEN is a server without tokens, GATED one with tokens. The test
// writes its requests to the caller ("tighten", "token") to standard output, and reads the answers from standard input.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import net from "node:net";
import path from "node:path";
import readline from "node:readline";
import { chromium } from "playwright-core";

const [open, gated, screenshots] = process.argv.slice(2);
const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const want = async (what) => {
  console.log(what);
  return (await answers.next()).value;
};
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** Proxy to the server whose connections can be cut. */
class Way {
  constructor(target) {
    this.sockets = new Set();
    this.cut = false;
    this.server = net.createServer((near) => {
      if (this.cut) return near.destroy();
      const far = net.connect(Number(target.port), target.hostname);
      for (const [one, other] of [[near, far], [far, near]]) {
        this.sockets.add(one);
        one.pipe(other);
        one.on("error", () => other.destroy());
        one.on("close", () => this.sockets.delete(one) && other.destroy());
      }
    });
  }

  async listen() {
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${this.server.address().port}`;
  }

  close() {
    this.cut = true;
    this.sockets.forEach((socket) => socket.destroy());
  }
}

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const wrong = [];

async function visit(url, options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("console", (message) => message.type() === "error" && !/Failed to load resource|net::ERR/.test(message.text()) && wrong.push(message.text()));
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("request", (request) => new URL(request.url()).origin === new URL(url).origin || request.url() === "data:," || wrong.push(`asked ${request.url()}`));
  await page.goto(url);
  return page;
}

async function accessible(page, about) {
  // Evaluated directly, because the content security policy of the page does not allow this script.
  await page.evaluate(await (await import("node:fs/promises")).readFile(axe, "utf8"));
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  assert.deepEqual(violations.map(({ id, nodes }) => `${about}: ${id} at ${nodes.map((node) => node.target).join(", ")}`), []);
}

const live = (page) => page.waitForSelector('#line[data-state="live"]');
const shown = (page, text) => page.waitForFunction((wanted) => document.body.innerText.includes(wanted), text);

try {
  const way = new Way(new URL(open));
  const url = await way.listen();
  const page = await visit(url, { colorScheme: "light", viewport: { width: 1200, height: 900 } });
  await live(page);

  // With the keyboard alone: past the skip link to the first policy, and open it.
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.focus("#fleet a");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#policy:not([hidden])");
  const name = await page.textContent("#policy-title");
  await page.waitForFunction((title) => document.activeElement.id === "policy-title" && title.includes("/"), name);
  await shown(page, "In effect".toUpperCase()).catch(() => shown(page, "In effect"));
  await page.waitForSelector("#nodes tbody tr");
  await accessible(page, "light");

  // A policy is tightened while the page is open.
  assert.equal(await page.textContent("#fleet tbody tr td:nth-of-type(4)"), "100%");
  await want("tighten");
  await page.waitForFunction(() => parseInt(document.querySelector("#fleet tbody tr td:nth-of-type(4)").textContent, 10) < 100);
  await page.waitForSelector("#history tbody tr");
  await page.waitForSelector("#chart .decision", { state: "attached" });
  assert.match(await page.textContent("#chart-said"), /\d+ tasks, \d+% of the threshold of 1000; openness \d+% \(100% = as declared, 0% = at the floor\); last decision: 100% to \d+%/);
  assert.match(await page.textContent("#conditions"), /HighTaskCount: True/);

  // The page asks first: a cancelled dialog changes nothing.
  const sent = [];
  page.on("request", (request) => request.method() === "POST" && sent.push(request.url()));
  const button = page.locator("#pool tbody tr", { hasText: name }).locator("button");
  await button.click();
  await accessible(page, "dialog");
  assert.equal(await page.evaluate(() => document.activeElement.value), "no", "the harmless answer has the focus");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#ask:not([open])", { state: "attached" });
  assert.deepEqual(sent, []);
  await button.click();
  await page.click('#ask button[value="yes"]');
  await page.waitForFunction((provider) => document.getElementById("done").textContent.startsWith(`${provider}: `), name);
  assert.equal(sent.length, 1);
  assert.match(await page.textContent("#done"), /\d+ connections? closed, \d+ will close after their current request/);

  // The connection is cut: the page shows it and reconnects automatically.
  way.close();
  await page.waitForSelector('#line[data-state="stale"]');
  assert.match(await page.textContent("#line"), /Stale: last update \d+s ago; reconnecting/);
  way.cut = false;
  await live(page);
  if (screenshots) await page.screenshot({ path: path.join(screenshots, "page-light.png"), fullPage: true });

  // Dark colors, on a phone.
  const phone = await visit(`${url}/#/${encodeURIComponent(name)}`, { colorScheme: "dark", viewport: { width: 360, height: 740 } });
  await live(phone);
  await phone.waitForSelector("#nodes tbody tr");
  await phone.waitForSelector("#chart .tasks", { state: "attached" });
  await accessible(phone, "dark");
  const width = await phone.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 360, `the page is ${width} wide on a phone of 360`);
  if (screenshots) await phone.screenshot({ path: path.join(screenshots, "page-dark-phone.png") });

  // With tokens: the page asks for one, reports a bad one, and shows the policies that the owner of the token may see.
  const guarded = await visit(gated, { colorScheme: "light" });
  await guarded.waitForSelector("#gate:not([hidden])");
  await accessible(guarded, "gate");
  for (const [token, state] of [["made-up", "refused"], [await want("token"), "live"]]) {
    await guarded.fill("#token", token);
    await guarded.press("#token", "Enter");
    await guarded.waitForSelector(`#line[data-state="${state}"]`);
  }
  await guarded.waitForSelector("#fleet tbody tr");
  assert.equal(await guarded.isVisible("#gate"), false);
  assert.deepEqual(wrong, []);
  console.log("done");
} finally {
  await browser.close();
}
process.exit(0);
