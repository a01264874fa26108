import { isObject } from "./objects.js";
import { Client } from "./client.js";
import { CallFailed, ConnectionClosed, ConnectionLost } from "./errors.js";
import { type Opening, type ToTab, type ToWorker, rawJSON } from "./shared.js";
import type { Since, Subscription } from "./subscriptions.js";
import type { ClientEvents } from "./types.js";

// The worker's side of shared.ts. To tabs it acts as a gateway: it turns their frames into calls on the one connection
// that all tabs of a user share. When that connection ends, the worker ends those of the tabs in the same way. The tabs
// then reconnect by themselves, with tokens of their own.

/** The part of the global scope of a SharedWorker that is used here. */
export interface WorkerScope {
  onconnect: ((event: MessageEvent) => unknown) | null;
}

/** Milliseconds between pings to a tab. */
const TAB_PING_INTERVAL = 25_000;
/** Milliseconds for a tab's answer. */
const TAB_PING_TIMEOUT = 10_000;

const hubs = new Set<Hub>();

/** Parse JSON. Integers that a number cannot hold are passed on as they are. */
const parse = (text: string): unknown => (/\d{16}/.test(text) && rawJSON ? JSON.parse(text, kept as never) : JSON.parse(text));

function kept(_: string, value: unknown, { source }: { source: string }): unknown {
  return Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?\d+$/.test(source) ? rawJSON!(source) : value;
}

/** Run as the worker. */
export function serve(scope: WorkerScope): void {
  scope.onconnect = ({ ports }) => new Tab(ports[0]!);
}

/** A connection to the gateway, and the tabs of one user that share it. */
class Hub {
  readonly client: Client;
  readonly tabs = new Set<Tab>();
  readonly url: string;
  /** Resolves to whether the connection was established. */
  readonly opened: Promise<boolean>;
  #authorizing: Promise<unknown> = Promise.resolve();

  constructor({ url, tokenIn, pingInterval, pingTimeout }: Opening, token: string) {
    this.url = url;
    const client = (this.client = new Client(url, { token, tokenIn, pingInterval, pingTimeout, parse, reconnect: false }));
    this.opened = new Promise((resolve) => {
      client.on("state", (state) => {
        if (state.name === "open") resolve(true);
        if (state.name === "closed") {
          hubs.delete(this);
          resolve(false);
          if (state.error !== null) for (const tab of [...this.tabs]) tab.hangUp(state.error);
        }
      });
    });
    client.on("event", ({ topic, event, traceId, position }) => {
      this.#broadcast(topic, event, { ...(traceId !== null && { trace_id: traceId }), position });
    });
    for (const topic of ["gap", "dropped", "unsubscribed"] as const) {
      client.on(topic, (event: ClientEvents[typeof topic]) => this.#broadcast(topic, event));
    }
    client.on("goodbye", ({ reason, retryAfter }) => {
      this.#broadcast("goodbye", { reason, retry_after_ms: retryAfter });
    });
    client.on("warning", ({ code, message }) => {
      for (const tab of this.tabs) tab.send({ type: "error", code, description: message });
    });
    hubs.add(this);
  }

  /** Send the gateway another token, one at a time. Fails with PermissionDenied for a token of another user. */
  authorize(token: string): Promise<number | null> {
    const answer = this.#authorizing.then(() => this.client.authorize(token));
    this.#authorizing = answer.catch(() => {});
    return answer;
  }

  /** Remove a tab. The last one closes the connection. */
  leave(tab: Tab): void {
    this.tabs.delete(tab);
    if (this.tabs.size === 0) this.client.close();
  }

  #broadcast(topic: string, event: unknown, more: object = {}): void {
    for (const tab of this.tabs) tab.send({ type: "event", payload: { topic, event, ...more } });
  }
}

/** One tab, with its calls and subscriptions. */
class Tab {
  readonly #port: MessagePort;
  #opening: Opening | null = null;
  #hub: Hub | null = null;
  #isGone = false;
  readonly #calls = new Map<string, AbortController>();
  readonly #topics = new Map<string, Subscription>();
  #heardAt = performance.now();
  #heartbeat: ReturnType<typeof setInterval> | undefined;

  constructor(port: MessagePort) {
    this.#port = port;
    port.onmessage = ({ data }: MessageEvent<string | ToWorker>) => this.#receive(data);
  }

  send(frame: object): void {
    if (!this.#isGone) this.#port.postMessage(JSON.stringify(frame));
  }

  /** Report the end of the connection to the tab, with the gateway's error and close code. */
  hangUp(error: ConnectionClosed): void {
    if (error.cause instanceof CallFailed) this.send({ type: "error", ...encoded(error.cause) });
    this.#end(error.closeCode, error.reason);
  }

  #end(code: number, reason: string): void {
    if (this.#isGone) return;
    const closed: ToTab = { closed: { code, reason } };
    this.#port.postMessage(closed);
    this.#leave();
  }

  #leave(): void {
    if (this.#isGone) return;
    this.#isGone = true;
    clearInterval(this.#heartbeat);
    this.#port.close();
    for (const call of this.#calls.values()) call.abort();
    for (const subscription of this.#topics.values()) subscription.unsubscribe();
    this.#hub?.leave(this);
  }

  #receive(data: string | ToWorker): void {
    this.#heardAt = performance.now();
    if (typeof data === "string") {
      const { type, payload } = parse(data) as { type: string; payload?: Record<string, unknown> };
      void this.#onFrame(type, payload ?? {});
    } else if ("open" in data) {
      this.#open(data.open);
    } else {
      this.#leave();
    }
  }

  #open(opening: Opening): void {
    this.#opening = opening;
    // The lock is granted when the tab has ended. Pings cover tabs without locks, and frozen tabs.
    if (opening.lock !== null) void navigator.locks.request(opening.lock, () => this.#leave());
    const interval = opening.pingInterval ?? TAB_PING_INTERVAL;
    const patience = interval + (opening.pingTimeout ?? TAB_PING_TIMEOUT);
    this.#heartbeat = setInterval(() => {
      if (performance.now() - this.#heardAt > patience) this.#end(4012, "no pong");
      else this.send({ type: "ping" });
    }, interval);
    const opened: ToTab = { opened: true };
    this.#port.postMessage(opened);
  }

  async #onFrame(type: string, payload: Record<string, unknown>): Promise<void> {
    const hub = this.#hub;
    if (type === "authorize") {
      await (hub === null ? this.#join(payload) : this.#answer(payload, () => this.#refresh(hub, payload)));
    } else if (type === "ping") {
      this.send({ type: "pong", payload });
    } else if (type === "cancel") {
      this.#calls.get(String(payload.id))?.abort();
    } else if (hub !== null && type !== "pong") {
      await this.#answer(payload, () => this.#do(hub.client, type, payload));
    }
  }

  /** Join the connection of the token's user, or make one. */
  async #join(payload: Record<string, unknown>): Promise<void> {
    const opening = this.#opening!;
    const token = String(payload.token);
    const tried = new Set<Hub>();
    for (;;) {
      // Other tabs of this user may have made a connection meanwhile.
      const hub = [...hubs].find((each) => each.url === opening.url && !tried.has(each));
      if (hub === undefined) break;
      tried.add(hub);
      if (!(await hub.opened)) continue;
      try {
        const expiresAt = await hub.authorize(token);
        this.#enter(hub, payload.id, expiresAt);
        return;
      } catch {
        // The connection is another user's or has just ended, or the token is invalid. A connection of its own will
        // show which.
      }
    }
    if (this.#isGone) return;
    const hub = new Hub(opening, token);
    hub.tabs.add(this);
    this.#hub = hub;
    if (await hub.opened) this.#enter(hub, payload.id, hub.client.hello!.expires_at);
  }

  #enter(hub: Hub, id: unknown, expiresAt: number | null): void {
    if (this.#isGone) {
      hub.leave(this);
      return;
    }
    this.#hub = hub;
    hub.tabs.add(this);
    this.send({ type: "event", payload: { topic: "hello", event: { ...hub.client.hello, expires_at: expiresAt, resume: false } } });
    this.send({ type: "response", payload: { id, result: { expires_at: expiresAt }, error: null } });
  }

  async #refresh(hub: Hub, payload: Record<string, unknown>): Promise<unknown> {
    return { expires_at: await hub.authorize(String(payload.token)) };
  }

  async #answer({ id, trace_id }: Record<string, unknown>, run: () => Promise<unknown>): Promise<void> {
    try {
      const result = (await run()) ?? null;
      this.send({ type: "response", payload: { id, trace_id, result, error: null } });
    } catch (error) {
      if (error instanceof ConnectionLost || error instanceof ConnectionClosed) return; // hangUp() reports that
      const failure = error instanceof CallFailed ? encoded(error) : { code: "cancelled", description: String(error) };
      const trace = error instanceof CallFailed ? (error.traceId ?? trace_id) : trace_id;
      this.send({ type: "response", payload: { id, trace_id: trace, result: null, error: failure } });
    }
  }

  async #do(client: Client, type: string, payload: Record<string, unknown>): Promise<unknown> {
    const topics = Array.isArray(payload.topics) ? payload.topics.map(String) : [];
    if (type === "subscribe") return this.#subscribe(client, topics, isObject(payload.since) ? payload.since : {});
    if (type === "unsubscribe") return this.#unsubscribe(topics);
    const id = String(payload.id);
    const controller = new AbortController();
    this.#calls.set(id, controller);
    const service = payload.service as string;
    const method = payload.method as string;
    const params = isObject(payload.params) ? payload.params : {};
    const options = {
      signal: controller.signal,
      timeout: typeof payload.timeout === "number" ? payload.timeout * 1000 : undefined,
      traceId: typeof payload.trace_id === "string" ? payload.trace_id : undefined,
      trace: isObject(payload.trace) ? payload.trace : undefined,
      idempotencyKey: typeof payload.idempotency_key === "string" ? payload.idempotency_key : undefined,
    };
    try {
      if (type === "request") return await client.request(service, method, params, options);
      if (type === "command") return await client.command(service, method, params, options);
      return await client.describe(service, options);
    } finally {
      this.#calls.delete(id);
    }
  }

  async #subscribe(client: Client, topics: string[], since: Record<string, unknown>): Promise<unknown> {
    const history = {};
    const fresh = topics.filter((topic) => !this.#topics.has(topic) || since[topic]);
    for (const topic of fresh) {
      const former = this.#topics.get(topic);
      const subscription = client.subscribe(topic, () => {}, { since: since[topic] as Since | undefined });
      this.#topics.set(topic, subscription);
      former?.unsubscribe();
      subscription.on("history", (each) => Object.assign(history, each));
      subscription.on("ended", () => {
        if (this.#topics.get(topic) === subscription) this.#topics.delete(topic);
      });
    }
    try {
      await Promise.all(topics.map((topic) => this.#topics.get(topic)?.ready));
    } catch (error) {
      this.#unsubscribe(fresh);
      throw error;
    }
    return { topics: [...this.#topics.keys()], history };
  }

  #unsubscribe(topics: string[]): unknown {
    for (const topic of topics) this.#topics.get(topic)?.unsubscribe();
    return { topics: [...this.#topics.keys()] };
  }
}

function encoded(error: CallFailed): object {
  return {
    code: error.code,
    description: error.message,
    error: error.error,
    retryable: error.retryable,
    retry_after_ms: error.retryAfter,
  };
}
