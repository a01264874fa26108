// The module that the gateway serves to pages: the client, and shared connections. It is the worker's script, too.

import { type Connect, connectWith } from "./connect.js";
import { WORKER_NAME, sharedSockets } from "./shared.js";
import { type WorkerScope, serve } from "./worker.js";

export * from "./index.js";

/**
 * Make a client of the gateway at `url` (`wss://...`, or a path on the page's host). It starts to connect at once, and
 * its methods may be called before it is connected.
 *
 * Throws TypeError for invalid arguments.
 */
export const connect: Connect = connectWith((options) => {
  const { tokenIn, pingInterval, pingTimeout } = options;
  return sharedSockets(worker(options.workerUrl), { tokenIn, pingInterval, pingTimeout });
});

/** The URL of the worker's script: this module, unless it is part of a bundle. */
function worker(url: string | URL | undefined): URL {
  if (url !== undefined) return new URL(url, location.href);
  const own = new URL(import.meta.url);
  if (own.pathname.endsWith("/client.js")) return own;
  throw new TypeError("shared needs workerUrl in a bundle: the URL of client.js");
}

const scope = globalThis as unknown as WorkerScope & { SharedWorkerGlobalScope?: new () => object; name?: string };
if (
  scope.SharedWorkerGlobalScope !== undefined &&
  globalThis instanceof scope.SharedWorkerGlobalScope &&
  scope.name?.startsWith(WORKER_NAME)
) {
  serve(scope);
}
