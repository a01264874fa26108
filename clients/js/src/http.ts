import type { ClientOptions, SocketLike } from "./types.js";
import { isObject } from "./objects.js";

type Payload = Record<string, unknown>;
type Codec = Pick<ClientOptions, "parse" | "stringify">;
/** A request for which another stream has to begin. */
type Asked = { type: string; payload: Payload };

/**
 * A connection over HTTP, for networks that block WebSockets: a stream of Server-Sent Events, and a POST for each call.
 * To the client it is a WebSocket that speaks the gateway's protocol.
 */
export class HttpSocket implements SocketLike {
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  readonly #base: string;
  #token: string | undefined;
  readonly #parse: (text: string) => unknown;
  readonly #stringify: (value: object) => string;
  readonly #topics = new Set<string>();
  readonly #calls = new Map<unknown, AbortController>();
  /** Ends the stream in use. */
  #stream = new AbortController();
  /** The id of the last event, with which the next stream goes on behind it. */
  #lastId = "";
  readonly #asked: Asked[] = [];
  /** Whether a stream is about to begin. */
  #isBusy = false;
  /** Whether each request has a stream of its own, because one with all of them was refused. */
  #oneByOne = false;
  #isClosed = false;

  /** `url` is that of the WebSocket; the gateway's other paths are beside it. Without a token, a cookie is sent. */
  constructor(url: string, token: string | undefined, { parse = JSON.parse, stringify = JSON.stringify }: Codec) {
    this.#base = url.replace(/^ws/, "http").replace(/[^/]*(\?.*)?$/, "");
    this.#token = token;
    this.#parse = parse;
    this.#stringify = stringify;
    this.#listen();
  }

  send(text: string): void {
    const { type, payload = {} } = this.#parse(text) as { type: string; payload?: Payload };
    if (type === "request" || type === "command") {
      void this.#call(type, payload);
    } else if (type === "cancel") {
      this.#calls.get(payload.id)?.abort();
    } else if (type === "ping") {
      // Any answer shows that the gateway can be reached.
      fetch(`${this.#base}livez`, { mode: "no-cors" }).then(
        () => this.#receive('{"type":"pong"}'),
        () => this.#end(1006, "the gateway does not answer"),
      );
    } else if (type === "describe") {
      this.#answer(payload.id, { error: { code: "method_not_found", description: "describe needs a WebSocket" } });
    } else if (type === "unsubscribe") {
      // The stream goes on with more topics than needed, until the next one.
      for (const topic of payload.topics as string[]) this.#topics.delete(topic);
      this.#answer(payload.id, { result: { topics: [...this.#topics] } });
    } else if (type === "subscribe" || type === "authorize") {
      if (type === "authorize") this.#token = String(payload.token);
      this.#asked.push({ type, payload });
      // Requests that are made together need one stream.
      queueMicrotask(() => this.#isBusy || this.#asked.length === 0 || this.#listen());
    }
  }

  close(): void {
    this.#end(1000, "");
  }

  /** Begin a stream in place of the last one, with the topics of the requests that wait for it. */
  #listen(): void {
    if (this.#isClosed) return;
    this.#isBusy = true;
    const asked = this.#asked.splice(0, this.#oneByOne ? 1 : Infinity);
    this.#oneByOne &&= this.#asked.length > 0;
    const former = this.#stream;
    const stream = (this.#stream = new AbortController());
    this.#read(asked, former, stream).catch((error: unknown) => {
      if (this.#stream === stream) this.#end(1006, String(error));
    });
  }

  async #read(asked: Asked[], former: AbortController, { signal }: AbortController): Promise<void> {
    const topics = new Set(this.#topics);
    for (const { payload } of asked) for (const topic of topicsOf(payload)) topics.add(topic);
    const query = new URLSearchParams([...topics].map((topic) => ["topic", topic]));
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (this.#lastId !== "") headers["Last-Event-ID"] = this.#lastId;
    const response = await this.#fetch(`events?${query}`, { headers, signal });
    if (!response.ok || response.body === null) {
      this.#refused(asked, await errorOf(response));
      return;
    }
    const begin = (expiresAt: unknown) => {
      former.abort();
      for (const { type, payload } of asked) {
        for (const topic of topicsOf(payload)) this.#topics.add(topic);
        const result = type === "authorize" ? { expires_at: expiresAt } : { topics: [...this.#topics] };
        this.#answer(payload.id, { result });
      }
      this.#isBusy = false;
      if (this.#asked.length > 0) this.#listen();
    };
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let text = "";
    let isNew = true;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the stream has ended");
      const events = (text + decoder.decode(value, { stream: true })).split("\n\n");
      text = events.pop()!;
      for (const event of events) {
        const field = (name: string) => new RegExp(`^${name}: ?(.*)$`, "m").exec(event)?.[1] ?? "";
        this.#lastId = field("id") || this.#lastId;
        const data = field("data");
        const name = field("event");
        if (name === "hello") {
          const { event: hello } = JSON.parse(data) as { event: Payload };
          // The stream has a session of its own, which is not that of the protocol's frames.
          this.#receive(JSON.stringify({ type: "event", payload: { topic: name, event: { ...hello, resume: false } } }));
          if (isNew) begin(hello.expires_at);
          isNew = false;
        } else if (name === "closed") {
          const { code, reason } = (JSON.parse(data) as { event: { code: number; reason: string } }).event;
          // Else the session has gone on to the next stream.
          if (this.#stream.signal === signal) this.#end(code, reason);
        } else {
          this.#receive(name === "frame" ? data : data ? `{"type":"event","payload":${data}}` : '{"type":"pong"}');
        }
      }
    }
  }

  /** Answer the request for which a stream was refused, and go on without it. */
  #refused(asked: Asked[], error: Payload): void {
    if (asked.length === 0) {
      this.#receive(JSON.stringify({ type: "error", ...error }));
      this.#end(CLOSE_CODES[String(error.code)] ?? 1006, String(error.description));
      return;
    }
    this.#oneByOne = asked.length > 1;
    if (this.#oneByOne) this.#asked.unshift(...asked);
    else this.#answer(asked[0]!.payload.id, { error });
    this.#listen();
  }

  async #call(type: string, { id, service, method, params, ...more }: Payload): Promise<void> {
    const controller = new AbortController();
    this.#calls.set(id, controller);
    const { timeout, trace_id: traceId, idempotency_key: key } = more;
    const headers: Record<string, string> = { "Content-Type": "application/json" };
    headers.Prefer = type === "command" ? "respond-async" : `wait=${Math.ceil(Number(timeout))}`;
    if (traceId !== undefined) headers["X-Trace-Id"] = String(traceId);
    if (key !== undefined) headers["Idempotency-Key"] = String(key);
    Object.assign(headers, more.trace);
    const path = [...String(service).split("/"), String(method)].map(encodeURIComponent).join("/");
    try {
      const body = this.#stringify(params as object);
      const response = await this.#fetch(`rpc/${path}`, { method: "POST", headers, body, signal: controller.signal });
      const trace = response.headers.get("X-Trace-Id") ?? traceId;
      if (!response.ok) this.#answer(id, { error: await errorOf(response) }, trace);
      else this.#answer(id, { result: type === "command" ? null : this.#parse(await response.text()) }, trace);
    } catch {
      if (controller.signal.aborted) this.#answer(id, { error: { code: "cancelled" } });
      else this.#end(1006, "a call has failed");
    } finally {
      this.#calls.delete(id);
    }
  }

  #fetch(path: string, options: RequestInit & { headers: Record<string, string> }): Promise<Response> {
    const token = this.#token;
    if (token !== undefined) options.headers.Authorization = `Bearer ${token}`;
    return fetch(this.#base + path, { ...options, credentials: token === undefined ? "include" : "omit" });
  }

  #answer(id: unknown, outcome: { result?: unknown; error?: object }, traceId?: unknown): void {
    const payload = { id, trace_id: traceId, result: null, error: null, ...outcome };
    this.#receive(this.#stringify({ type: "response", payload }));
  }

  #receive(data: string): void {
    if (!this.#isClosed) this.onmessage?.({ data } as never);
  }

  #end(code: number, reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#stream.abort();
    for (const call of this.#calls.values()) call.abort();
    if (code !== 1000) this.onclose?.({ code, reason } as never);
  }
}

function topicsOf({ topics }: Payload): string[] {
  return Array.isArray(topics) ? topics.map(String) : [];
}

/** Close codes of a WebSocket for the gateway's errors that refuse a stream for good. Those of a proxy may heal. */
const CLOSE_CODES: Record<string, number> = { unauthenticated: 4510, permission_denied: 4507 };

/** Read the error of a response; proxies answer without one. */
async function errorOf(response: Response): Promise<Payload> {
  const { status } = response;
  const usual = { code: "service_unavailable", description: `HTTP status ${status}`, retryable: status === 503 };
  const given: unknown = await response.json().catch(() => null);
  return isObject(given) ? { ...usual, ...given } : usual;
}
