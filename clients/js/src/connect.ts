import { Client } from "./client.js";
import type { ClientOptions, SocketConstructor } from "./types.js";

export interface ConnectOptions extends ClientOptions {
  /**
   * Share one connection among all tabs of this origin that have the same user, by a SharedWorker; in a browser without
   * SharedWorkers the tab has a connection of its own. Needs `getToken`, as the token identifies the user, and `connect`
   * of `nuropb-gateway-client/shared`, or of the gateway's `client.js`.
   */
  shared?: boolean | undefined;
  /** URL of `client.js` on the page's origin. Needed with `shared` if this module is part of a bundle. */
  workerUrl?: string | URL | undefined;
}

export type Connect = (url: string | URL, options?: ConnectOptions) => Client;

/** Make the function `connect`; `share` returns the sockets of shared connections. */
export function connectWith(share: (options: ConnectOptions) => SocketConstructor): Connect {
  return (url, options = {}) => {
    const { shared, workerUrl, ...rest } = options;
    const address = absolute(url);
    if (options.getToken !== undefined && options.token !== undefined) {
      throw new TypeError("getToken and token cannot be combined");
    }
    if (shared) {
      if (options.getToken === undefined) {
        throw new TypeError("shared needs getToken: the token identifies the user of this tab");
      }
      return new Client(address, { ...rest, tokenIn: "frame", WebSocket: share(options) });
    }
    if (options.WebSocket === undefined && typeof WebSocket === "undefined") {
      throw new TypeError(
        "there is no global WebSocket: use Node 22, start Node 20 with --experimental-websocket, or pass the WebSocket " +
          "of a package such as ws",
      );
    }
    return new Client(address, rest);
  };
}

/** Return the URL with the scheme of WebSockets. React Native's URL has no setters, and adds a slash to a path. */
function absolute(url: string | URL): string {
  const base = typeof location === "undefined" ? undefined : location.href;
  let [address = ""] = new URL(String(url), base).href.replace(/^http/, "ws").split("#");
  if (!/^wss?:\/\//.test(address)) throw new TypeError("the URL must begin with ws://, wss://, http:// or https://");
  if (/\w\/[^?#]*[^?#/]$/.test(String(url))) address = address.replace(/\/$/, "");
  return address;
}
