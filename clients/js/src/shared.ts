import type { SocketConstructor, SocketLike } from "./types.js";
import { VERSION } from "./version.js";

// The tab's end of a shared connection. Each tab has a client of its own, with its calls and subscriptions. Instead of
// a WebSocket the client uses a port to a SharedWorker, which speaks the gateway's protocol to the tabs (worker.ts).

/** The name of a worker. Each version has its own: different versions may not understand each other. */
export const WORKER_NAME = `nuropb-gateway-client ${VERSION}`;

/** Makes JSON of a number's text; not in all browsers. */
export const { rawJSON } = JSON as { rawJSON?: (text: string) => object };

/** Messages from a tab to the worker, besides frames, which are strings. */
export type ToWorker = { open: Opening } | { close: true };
/** Messages from the worker to a tab, besides frames. */
export type ToTab = { opened: true } | { closed: { code: number; reason: string } };

export interface Opening {
  url: string;
  tokenIn: "subprotocol" | "frame" | undefined;
  /** A Web Lock that the tab holds as long as it lives; null where the browser has none. */
  lock: string | null;
  /** Whether the tab reads JSON in a way of its own, and with it integers that a number cannot hold. */
  isExact: boolean;
  pingInterval: number | undefined;
  pingTimeout: number | undefined;
}

/** Milliseconds for a worker to start. */
const START_TIMEOUT = 5000;

/**
 * Return a constructor to use instead of WebSocket. Without SharedWorkers it makes ordinary WebSockets, and says so with
 * the `remedy`.
 */
export function sharedSockets(
  workerUrl: URL,
  opening: Omit<Opening, "url" | "lock">,
  remedy = "",
): SocketConstructor {
  let usable = typeof SharedWorker === "function" && (!opening.isExact || !!rawJSON);
  const giveUp = (problem: unknown) => {
    usable = false;
    const said = `nuropb-gateway-client: no SharedWorker at ${workerUrl}; this tab has its own connection. ${remedy}`;
    console.warn(said, problem);
  };
  const open = function (url: string, protocols: string[]): SocketLike {
    if (usable) {
      try {
        const worker = new SharedWorker(trusted(workerUrl), { type: "module", name: `${WORKER_NAME} ${url}` });
        return new PortSocket(worker, { ...opening, url }, giveUp);
      } catch (error) {
        giveUp(error);
      }
    }
    return new WebSocket(url, protocols);
  };
  return open as unknown as SocketConstructor;
}

interface TrustedTypes {
  createPolicy(name: string, rules: { createScriptURL: (url: string) => string }): { createScriptURL(url: string): URL };
}

/** Make the URL a trusted type, for pages whose policy requires that. The policy's name is nuropb-gateway-client. */
const trusted = (() => {
  let policy: ReturnType<TrustedTypes["createPolicy"]> | undefined;
  return (url: URL): URL => {
    const { trustedTypes } = globalThis as { trustedTypes?: TrustedTypes };
    if (trustedTypes === undefined) return url;
    policy ??= trustedTypes.createPolicy("nuropb-gateway-client", { createScriptURL: (text) => text });
    return policy.createScriptURL(url.href);
  };
})();

/** The tab's end of a port to the worker, with the interface of a WebSocket. */
class PortSocket implements SocketLike {
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  readonly #port: MessagePort;
  readonly #started: ReturnType<typeof setTimeout>;
  #release = () => {};
  #isClosed = false;

  constructor(worker: SharedWorker, opening: Omit<Opening, "lock">, giveUp: (problem: unknown) => void) {
    this.#port = worker.port;
    const fail = (problem: unknown) => {
      giveUp(problem);
      this.#end(1006, "no SharedWorker");
    };
    this.#started = setTimeout(() => fail("the worker did not start"), START_TIMEOUT);
    worker.onerror = (event) => fail(event);
    this.#port.onmessage = ({ data }: MessageEvent<string | ToTab>) => this.#receive(data);
    this.#hold((lock) => this.#post({ open: { ...opening, lock } }));
  }

  send(text: string): void {
    if (!this.#isClosed) this.#port.postMessage(text);
  }

  close(): void {
    if (this.#isClosed) return;
    this.#post({ close: true });
    this.#end(1000, "");
  }

  #receive(data: string | ToTab): void {
    if (typeof data === "string") {
      this.onmessage?.({ data } as never);
    } else if ("opened" in data) {
      clearTimeout(this.#started);
      this.onopen?.({} as never);
    } else {
      this.#end(data.closed.code, data.closed.reason);
    }
  }

  #post(message: ToWorker): void {
    this.#port.postMessage(message);
  }

  /** Hold a lock as long as the tab lives. The worker gets the lock when the tab ends, even if it crashes. */
  #hold(then: (lock: string | null) => void): void {
    if (typeof navigator.locks === "undefined") {
      then(null); // without HTTPS there are no locks, and the worker sends pings
      return;
    }
    const name = `${WORKER_NAME} ${crypto.randomUUID()}`;
    const held = new Promise<void>((resolve) => (this.#release = resolve));
    navigator.locks
      .request(name, () => {
        if (!this.#isClosed) then(name);
        return held;
      })
      .catch(() => then(null)); // the document may not use locks
  }

  #end(code: number, reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#started);
    this.#release();
    this.#port.close();
    this.onclose?.({ code, reason } as never);
  }
}
