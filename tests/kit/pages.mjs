// Drives Chromium with playwright-core for tests/kit/pages.py: lines of JSON in, lines of JSON out. Each line in is a
// piece of code, which gets the page, and what becomes of it is the line out.
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
  // No sandbox, as root cannot have one.
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"],
});
const pages = new Map();

/** A page in a context of its own, and all that it complained about, asked for and downloaded. */
async function open(id, options) {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
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
  // Without awaiting: a page that waits for something must not keep others from being asked.
  run(command).then(
    (result) => console.log(JSON.stringify({ id: command.id, result: result ?? null })),
    (error) => console.log(JSON.stringify({ id: command.id, error: String(error?.stack ?? error) })),
  );
}
await browser.close();
