// The entry nuropb-gateway-client/shared: the names of the main module, with shared connections. The worker is a file
// of its own, so that no bundle runs as its own worker.

import { type Connect, connect as connectAlone } from "./index.js";
import { sharedSockets } from "./shared.js";

export * from "./index.js";

const REMEDY =
  "Serve node_modules/nuropb-gateway-client/dist/nuropb-gateway-worker.js from the page's origin, and pass its URL as workerUrl.";

/**
 * Make a client of the gateway at `url` (`wss://...`, or a path on the page's host). It starts to connect at once, and
 * its methods may be called before it is connected.
 *
 * Throws TypeError for invalid arguments, and if the bundler does not tell where the worker of `shared` is.
 */
export const connect: Connect = (url, options = {}) => {
  const { shared, workerUrl, ...rest } = options;
  if (!shared) return connectAlone(url, rest);
  if (rest.getToken === undefined) {
    throw new TypeError("shared needs getToken: the token identifies the user of this tab");
  }
  const { tokenIn, pingInterval, pingTimeout, parse } = rest;
  const sockets = sharedSockets(find(workerUrl), { tokenIn, pingInterval, pingTimeout, isExact: !!parse }, REMEDY);
  return connectAlone(url, { ...rest, tokenIn: "frame", WebSocket: sockets });
};

/** Return the URL of the worker's script. Vite and webpack copy the file, and put its URL in the place of this one. */
function find(given: string | URL | undefined): URL {
  if (given !== undefined) return new URL(given, location.href);
  try {
    const url = new URL("./nuropb-gateway-worker.js", import.meta.url);
    if (/^https?:/.test(url.href)) return url;
  } catch {
    // A script that is no module has no URL.
  }
  throw new TypeError(`shared does not find its worker in this bundle. ${REMEDY}`);
}
