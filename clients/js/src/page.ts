// The module that the gateway serves to pages: the client, and shared connections.

import { type Connect, connectWith } from "./connect.js";
import { WORKER_NAME, sharedSockets } from "./shared.js";
import type { WorkerScope } from "./worker.js";

export * from "./index.js";

/**
 * Make a client of the gateway at `url` (`wss://...`, or a path on the page's host). It starts to connect at once, and
 * its methods may be called before it is connected.
 *
 * Throws TypeError for invalid arguments.
 */
export const connect: Connect = connectWith((options) => {
  const { tokenIn, pingInterval, pingTimeout, parse } = options;
  return sharedSockets(worker(options.workerUrl), { tokenIn, pingInterval, pingTimeout, isExact: !!parse });
});

const own = new URL(import.meta.url);
const WORKER = "client-worker.js";

/** The URL of the worker's script, which the gateway serves beside this module. A bundle does not know it. */
function worker(url: string | URL | undefined): URL {
  if (url !== undefined) return new URL(url, location.href);
  if (own.pathname.endsWith("/client.js")) return new URL(WORKER, own);
  throw new TypeError("shared needs workerUrl in a bundle: the URL of the gateway's client-worker.js");
}

const scope = globalThis as unknown as WorkerScope & { SharedWorkerGlobalScope?: object; name?: string };
if (scope.SharedWorkerGlobalScope !== undefined && scope.name?.startsWith(WORKER_NAME)) {
  // A page has named this module as the worker's script. Tabs wait until the script is there.
  const waiting: MessageEvent[] = [];
  scope.onconnect = (event) => waiting.push(event);
  void import(/* @vite-ignore */ new URL(WORKER, own).href).then(() =>
    waiting.forEach((event) => scope.onconnect!(event)),
  );
}
