import { Client, type ClientOptions } from "./client.js";
import { WORKER_NAME, sharedSockets } from "./shared.js";
import { type WorkerScope, serve } from "./worker.js";

export interface ConnectOptions extends ClientOptions {
  /**
   * One connection for all tabs of this origin that have the same user, by a SharedWorker; where there are none, a
   * connection of its own. Needs `getToken`, which tells whose tab it is.
   */
  shared?: boolean | undefined;
  /** Where `client.js` is served, on the page's origin. Needed with `shared` if this module is part of a bundle. */
  workerUrl?: string | URL | undefined;
}

/**
 * A client of the gateway at `url` (`wss://...`, or a path on the page's host). It begins to connect at once, and
 * everything may be called before it has.
 *
 * Throws TypeError for arguments that can never work.
 */
export function connect(url: string | URL, options: ConnectOptions = {}): Client {
  const { shared, workerUrl, ...rest } = options;
  const address = absolute(url);
  if (options.getToken !== undefined && options.token !== undefined) {
    throw new TypeError("getToken and token exclude each other");
  }
  if (shared) {
    if (options.getToken === undefined) throw new TypeError("shared needs getToken, which tells whose tab this is");
    const { tokenIn, pingInterval, pingTimeout } = options;
    const sockets = sharedSockets(worker(workerUrl), { tokenIn, pingInterval, pingTimeout });
    return new Client(address, { ...rest, tokenIn: "frame", WebSocket: sockets });
  }
  if (options.WebSocket === undefined && typeof WebSocket === "undefined") {
    throw new TypeError(
      "there is no WebSocket here: use Node 22, start Node 20 with --experimental-websocket, or pass the WebSocket " +
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

/** Where the worker's script is: this module, unless it has become a part of something else. */
function worker(url: string | URL | undefined): URL {
  if (url !== undefined) return new URL(url, location.href);
  const own = new URL(import.meta.url);
  if (own.pathname.endsWith("/client.js")) return own;
  throw new TypeError("shared needs workerUrl: this module is part of a bundle, so say where client.js is served");
}

// The worker's script is this module, too.
const scope = globalThis as unknown as WorkerScope & { SharedWorkerGlobalScope?: new () => object; name?: string };
if (
  scope.SharedWorkerGlobalScope !== undefined &&
  globalThis instanceof scope.SharedWorkerGlobalScope &&
  scope.name?.startsWith(WORKER_NAME)
) {
  serve(scope);
}
