// Drives Chromium with playwright-core for tests/kit/pages.py. Each input line is JSON with a piece of code, which gets
// the page; each output line is JSON with its result or error.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [, , home, executablePath] = process.argv;
const require = createRequire(`${home}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const AsyncFunction = (async () => {}).constructor;

const browser = await chromium.launch({
  executablePath,
  // No sandbox, because root cannot have one.
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"],
});
const pages = new Map();

/** Open a page in a context of its own, and record its problems, requests, sockets and downloads. */
async function open(id, options) {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  const seen = { problems: [], requests: [], sockets: [], downloads: [] };
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") seen.problems.push(message.text());
  });
  page.on("pageerror", (error) => seen.problems.push(String(error)));
  page.on("request", (request) => seen.requests.push([request.method(), request.url(), request.headers()]));
  page.on("websocket", (socket) => seen.sockets.push(socket.url()));
  page.on("download", (download) => seen.downloads.push(download));
  pages.set(id, { page, context, seen });
}

async function run({ page: id, code, args, options }) {
  if (options !== undefined) return open(id, options);
  const { page, context, seen } = pages.get(id);
  if (code === "close") {
    pages.delete(id);
    return context.close();
  }
  return new AsyncFunction("page", "context", "seen", "axe", "args", code)(page, context, seen, axe, args);
}

console.log("{}");
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  // Not awaited: a page that waits must not block the commands for other pages.
  run(command).then(
    (result) => console.log(JSON.stringify({ id: command.id, result: result ?? null })),
    (error) => console.log(JSON.stringify({ id: command.id, error: String(error?.stack ?? error) })),
  );
}
await browser.close();
