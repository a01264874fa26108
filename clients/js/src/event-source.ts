// The entry nuropb-gateway-client/event-source: the gateway's GET /events with the interface of a browser's EventSource,
// a token in a header, and attempts that go on after 429 and 503.

import { BACKOFF, after, jittered } from "./backoff.js";

/** Options of an event source. All times are in milliseconds. */
export interface EventSourceOptions {
  /** Called for every stream; null closes the source. After `rejected` it returns another token. Without it, cookies are sent. */
  getToken?: ((reason: "connect" | "rejected") => string | null | Promise<string | null>) | undefined;
  /** A token that never changes, instead of `getToken`. */
  token?: string | undefined;
  /** Silence after which the stream is taken for lost. Default: 60 s; the gateway sends a line every 25 s (`PING_INTERVAL`). */
  silence?: number | undefined;
  /** A function to use instead of the global fetch. */
  fetch?: typeof fetch | undefined;
}

/** The state of an event source, as the numbers of an EventSource. */
export type ReadyState = 0 | 1 | 2;

/**
 * Receive the events of `url` (`https://.../events?topic=orders.%23`). Events of the mesh are `message` events; those of
 * the gateway (`hello`, `gap`, `closed`, ...) have their names. `data` is JSON. `error` says that the stream was lost, with
 * `readyState` 0, or is closed for good, with 2; `cause` is the reason.
 */
export function eventSource(url: string | URL, options: EventSourceOptions = {}): GatewayEventSource {
  return new GatewayEventSource(url, options);
}

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;

const SILENCE = 60_000;
/** The longest time that the gateway may ask the source to wait. */
const MAX_WAIT = 60_000;

/** A stream of Server-Sent Events that is restored after a loss, behind its last event. */
export class GatewayEventSource extends EventTarget {
  readonly CONNECTING = CONNECTING;
  readonly OPEN = OPEN;
  readonly CLOSED = CLOSED;
  readonly url: string;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent<string>) => void) | null = null;
  onerror: ((event: Event & { cause: unknown }) => void) | null = null;
  readonly #options: EventSourceOptions;
  readonly #stop = new AbortController();
  #readyState: ReadyState = CONNECTING;
  #lastId = "";
  /** Milliseconds to wait for the next stream, as the gateway asks. */
  #retry = 0;
  #attempt = 0;
  /** Whether the last token was refused. */
  #isRejected = false;

  /** @internal */
  constructor(url: string | URL, options: EventSourceOptions) {
    super();
    if (options.getToken !== undefined && options.token !== undefined) {
      throw new TypeError("getToken and token cannot be combined");
    }
    this.url = new URL(url, typeof location === "undefined" ? undefined : location.href).href;
    this.#options = options;
    void this.#run();
  }

  get readyState(): ReadyState {
    return this.#readyState;
  }

  /** Whether cookies are sent: unless a token is. */
  get withCredentials(): boolean {
    const { getToken, token } = this.#options;
    return getToken === undefined && token === undefined;
  }

  /** Close the stream for good. */
  close(): void {
    this.#readyState = CLOSED;
    this.#stop.abort();
  }

  async #run(): Promise<void> {
    while (this.#readyState !== CLOSED) {
      let cause: unknown;
      try {
        cause = await this.#stream();
      } catch (error) {
        cause = error;
      }
      if (this.#stop.signal.aborted) return;
      if (cause instanceof Final) this.close();
      else this.#readyState = CONNECTING;
      this.#emit(Object.assign(new Event("error"), { cause: cause instanceof Final ? cause.cause : cause }));
      if (this.#stop.signal.aborted) return;
      await this.#wait(this.#retry + jittered(BACKOFF, this.#attempt++));
    }
  }

  /** Read one stream to its end, and return the reason of the end. */
  async #stream(): Promise<unknown> {
    const token = await this.#token();
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (token !== undefined) headers.Authorization = `Bearer ${token}`;
    if (this.#lastId !== "") headers["Last-Event-ID"] = this.#lastId;
    const stream = new AbortController();
    const stop = () => stream.abort();
    this.#stop.signal.addEventListener("abort", stop);
    const { fetch: ask = fetch, silence = SILENCE } = this.#options;
    let timer = after(silence, stop);
    try {
      const credentials = this.withCredentials ? "include" : "omit";
      const response = await ask(this.url, { headers, credentials, cache: "no-store", signal: stream.signal });
      this.#check(response);
      const reader = response.body!.getReader();
      const decoder = new TextDecoder();
      const parser = new Parser();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return new Error("the stream has ended");
        clearTimeout(timer);
        timer = after(silence, stop);
        for (const event of parser.feed(decoder.decode(value, { stream: true }))) {
          if (stream.signal.aborted) return undefined;
          const reason = this.#receive(event);
          if (reason !== null) return reason;
        }
      }
    } finally {
      clearTimeout(timer);
      this.#stop.signal.removeEventListener("abort", stop);
      stream.abort();
    }
  }

  async #token(): Promise<string | undefined> {
    const { getToken, token } = this.#options;
    if (getToken === undefined) return token;
    const given = await getToken(this.#isRejected ? "rejected" : "connect");
    if (given === null) throw new Final(new Error("there is no token any more"));
    return given;
  }

  /** Throw unless a response is a stream of events: a Final if another attempt would be answered in the same way. */
  #check(response: Response): void {
    const { status } = response;
    const seconds = Number(response.headers.get("Retry-After") ?? NaN);
    this.#retry = Number.isFinite(seconds) ? Math.min(seconds * 1000, MAX_WAIT) : 0;
    if (response.ok && response.body && response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      return;
    }
    void response.body?.cancel().catch(() => {});
    const problem = new Error(`the gateway answered with HTTP status ${status}`);
    if (status === 401 && this.#options.getToken !== undefined && !this.#isRejected) {
      this.#isRejected = true;
      throw problem;
    }
    const mayHeal = status >= 500 || [408, 421, 425, 429].includes(status);
    throw mayHeal ? problem : new Final(problem);
  }

  /** Dispatch an event. Returns the reason of the stream's end, or null if it goes on. */
  #receive({ id, name, data, retry }: Parsed): unknown {
    if (id !== null) this.#lastId = id;
    if (retry !== null) this.#retry = Math.min(retry, MAX_WAIT);
    if (data === null) return null;
    const event = new MessageEvent(name || "message", { data, lastEventId: this.#lastId, origin: new URL(this.url).origin });
    if (name === "hello" && this.#readyState === CONNECTING) {
      this.#readyState = OPEN;
      this.#attempt = 0;
      this.#isRejected = false;
      this.#emit(new Event("open"));
    }
    this.#emit(event);
    if (name !== "closed") return null;
    const { code, reason } = (JSON.parse(data) as { event: { code: number; reason: string } }).event;
    const problem = new Error(`the gateway closed the stream (${code}: ${reason})`);
    if (code === 4510 && this.#options.getToken !== undefined && !this.#isRejected) this.#isRejected = true;
    else if (code >= 4500 && code < 5000) return new Final(problem);
    return problem;
  }

  #emit(event: Event): void {
    this.dispatchEvent(event);
    if (event.type === "open") this.onopen?.(event);
    else if (event.type === "message") this.onmessage?.(event as MessageEvent<string>);
    else if (event.type === "error") this.onerror?.(event as Event & { cause: unknown });
  }

  #wait(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const { signal } = this.#stop;
      const timer = after(milliseconds, done);
      function done() {
        clearTimeout(timer);
        signal.removeEventListener("abort", done);
        resolve();
      }
      signal.addEventListener("abort", done);
    });
  }
}

/** A reason after which no other stream is opened. */
class Final extends Error {
  constructor(cause: unknown) {
    super("closed for good", { cause });
  }
}

interface Parsed {
  id: string | null;
  name: string;
  /** Null for a block without data, which is no event. */
  data: string | null;
  retry: number | null;
}

/** The parser of an event stream. Its lines end with CR, LF or both. */
class Parser {
  #rest = "";
  #isFirst = true;
  #lines: string[] = [];

  /** Return the events that `text` completes. */
  feed(text: string): Parsed[] {
    let all = this.#rest + text;
    if (this.#isFirst && all !== "") {
      all = all.replace(/^\uFEFF/, "");
      this.#isFirst = false;
    }
    // A CR at the end may be half of a CR LF.
    const lines = all.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop()!;
    const events: Parsed[] = [];
    for (const line of lines) {
      if (line !== "") this.#lines.push(line);
      else if (this.#lines.length > 0) events.push(parsed(this.#lines.splice(0)));
    }
    return events;
  }
}

function parsed(lines: string[]): Parsed {
  const event: Parsed = { id: null, name: "", data: null, retry: null };
  for (const line of lines) {
    const [, field = "", value = ""] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
    if (field === "data") event.data = event.data === null ? value : `${event.data}\n${value}`;
    else if (field === "event") event.name = value;
    else if (field === "id" && !value.includes("\0")) event.id = value;
    else if (field === "retry" && /^\d+$/.test(value)) event.retry = Number(value);
  }
  return event;
}
