import { Client, type ClientOptions } from "./client.js";
import { WORKER_NAME, sharedSockets } from "./shared.js";
import { type WorkerScope, serve } from "./worker.js";

export interface ConnectOptions extends ClientOptions {
  /**
   * Share one connection among all tabs of this origin that have the same user, by a SharedWorker; in a browser without
   * SharedWorkers the tab has a connection of its own. Needs `getToken`, as the token identifies the user.
   */
  shared?: boolean | undefined;
  /** URL of `client.js` on the page's origin. Needed with `shared` if this module is part of a bundle. */
  workerUrl?: string | URL | undefined;
}

/**
 * Make a client of the gateway at `url` (`wss://...`, or a path on the page's host). It starts to connect at once, and
 * its methods may be called before it is connected.
 *
 * Throws TypeError for invalid arguments.
 */
export function connect(url: string | URL, options: ConnectOptions = {}): Client {
  const { shared, workerUrl, ...rest } = options;
  const address = absolute(url);
  if (options.getToken !== undefined && options.token !== undefined) {
    throw new TypeError("getToken and token cannot be combined");
  }
  if (shared) {
    if (options.getToken === undefined) throw new TypeError("shared needs getToken: the token identifies the user of this tab");
    const { tokenIn, pingInterval, pingTimeout } = options;
    const sockets = sharedSockets(worker(workerUrl), { tokenIn, pingInterval, pingTimeout });
    return new Client(address, { ...rest, tokenIn: "frame", WebSocket: sockets });
  }
  if (options.WebSocket === undefined && typeof WebSocket === "undefined") {
    throw new TypeError(
      "there is no global WebSocket: use Node 22, start Node 20 with --experimental-websocket, or pass the WebSocket " +
        "of a package such as ws",
    );
  }
  return new Client(address, rest);
}

function absolute(url: string | URL): string {
  const address = new URL(url, typeof location === "undefined" ? undefined : location.href);
  address.protocol = address.protocol.replace(/^http/, "ws");
  if (!/^wss?:$/.test(address.protocol)) throw new TypeError("the URL must begin with ws://, wss://, http:// or https://");
  address.hash = "";
  return address.href;
}

/** The URL of the worker's script: this module, unless it is part of a bundle. */
function worker(url: string | URL | undefined): URL {
  if (url !== undefined) return new URL(url, location.href);
  const own = new URL(import.meta.url);
  if (own.pathname.endsWith("/client.js")) return own;
  throw new TypeError("shared needs workerUrl: this module is part of a bundle, so pass the URL of client.js");
}

// This module is also the script of the worker.
const scope = globalThis as unknown as WorkerScope & { SharedWorkerGlobalScope?: new () => object; name?: string };
if (
  scope.SharedWorkerGlobalScope !== undefined &&
  globalThis instanceof scope.SharedWorkerGlobalScope &&
  scope.name?.startsWith(WORKER_NAME)
) {
  serve(scope);
}
