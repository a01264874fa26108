import { BACKOFF, type Backoff, after, jittered } from "./backoff.js";
import { type CallOptions, Calls, LIMITS, isObject } from "./calls.js";
import { Emitter } from "./emitter.js";
import {
  type CallFailed,
  ConnectionClosed,
  ConnectionLost,
  type GatewayError,
  PermissionDenied,
  TokenRefreshFailed,
  Unauthenticated,
  UnexpectedFrame,
  callFailed,
  isFinal,
  milliseconds,
  obeyed,
} from "./errors.js";
import {
  type Dropped,
  type Gap,
  type GatewayEvent,
  type SubscribeOptions,
  Subscription,
  Subscriptions,
  type UnsubscribedNotice,
} from "./subscriptions.js";

/** The first frame of the gateway on every connection. */
export interface Hello {
  session_id: string;
  user_id: string;
  username: string;
  protocol: string;
  instance_id: string;
  /** Seconds since 1970; null if the token does not expire. */
  expires_at: number | null;
  /** Times are in seconds, as the gateway sends them. */
  limits: { max_message_size: number; max_in_flight: number; request_timeout: number; ping_interval: number };
}

/** The state of the connection. */
export type State =
  /** Fetching a token, then connecting. */
  | { name: "connecting" }
  /** Connected, before the hello: the gateway checks the token. */
  | { name: "authorising" }
  | { name: "open"; hello: Hello }
  /** Waiting for `delay` milliseconds because of `error`. */
  | { name: "reconnecting"; delay: number; error: GatewayError }
  /** Closed for good; `error` is null if the application did that. */
  | { name: "closed"; error: ConnectionClosed | null };

/** The values that listeners of a client receive, by the names that `on` takes. */
export interface ClientEvents {
  state: State;
  /** Every event of the mesh, including events with a target, which need no subscription. */
  event: GatewayEvent;
  gap: Gap;
  dropped: Dropped;
  unsubscribed: UnsubscribedNotice;
  /** The gateway will stop; the client reconnects by itself. */
  goodbye: { reason: string; retryAfter: number };
  /** An error that belongs to no call. Without a listener it is written to the console. */
  warning: GatewayError;
}

/** The reason for which a token is requested. */
export type TokenReason = "connect" | "refresh" | "rejected";

/**
 * Returns a token. Null means that there are no more tokens, and closes the client. After an error the client tries
 * again.
 */
export type GetToken = (reason: TokenReason) => string | null | Promise<string | null>;

/** The part of the interface of a WebSocket that the client uses. */
export interface SocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export type SocketConstructor = new (url: string, protocols: string[]) => SocketLike;

/** Options of a client. All times are in milliseconds. */
export interface ClientOptions {
  /** Called for every connection, and before a token expires. Leave it out if a cookie contains the token. */
  getToken?: GetToken | undefined;
  /** A token that never changes, instead of `getToken`. */
  token?: string | undefined;
  /**
   * Where to send the token: as a subprotocol (the default in browsers), or in the first frame (the default elsewhere,
   * where a refused handshake would look like a broken connection). A token above about 6 kB needs the frame.
   */
  tokenIn?: "subprotocol" | "frame" | undefined;
  /** A class to use instead of the global WebSocket. */
  WebSocket?: SocketConstructor | undefined;
  /** Whether to reconnect after a lost connection. Default: true. */
  reconnect?: boolean | undefined;
  backoff?: Partial<Backoff> | undefined;
  /** A connection that lasted at least this long resets the backoff. Default: 10 s. */
  stableAfter?: number | undefined;
  /** Time from the start of an attempt to the gateway's hello. Default: 15 s. */
  connectTimeout?: number | undefined;
  /** Silence after which the client pings the gateway. Default: the gateway's own interval, at most 30 s. */
  pingInterval?: number | undefined;
  /** Timeout of the answer to a ping. Default: 10 s. */
  pingTimeout?: number | undefined;
  /** Time before its expiry at which a token is replaced; at most a quarter of its remaining time. Default: 60 s. */
  refreshMargin?: number | undefined;
  /** Time after its timeout that a call still waits for the gateway's own timeout error. Default: 2 s. */
  grace?: number | undefined;
  /** Maximum number of calls that wait to be sent. Default: 10 000. */
  maxQueue?: number | undefined;
}

/** Milliseconds of silence after which the gateway is pinged, unless options or gateway name a shorter time. */
const MAX_PING_INTERVAL = 30_000;
/** Milliseconds for a gateway that said goodbye to close the connection. */
const GOODBYE_TIMEOUT = 30_000;
/** The close code of a connection that broke, or that the client aborted. */
const BROKEN = 1006;
/** The close code for an invalid token. */
const INVALID_TOKEN = 4510;

/** One WebSocket connection, from its start to its end. */
interface Link {
  socket: SocketLike;
  openedAt: number | null;
  heardAt: number;
  pingedAt: number | null;
  timers: { [name in "connect" | "silence" | "refresh" | "goodbye"]?: ReturnType<typeof setTimeout> };
  /** The last error that the gateway sent. */
  lastError: CallFailed | null;
  /** Milliseconds to stay away after the end of the connection, from a goodbye. */
  stayAway: number;
  /** Time by performance.now() before which not to reconnect, from an error. */
  notBefore: number;
}

/** A client of a gateway: a connection that is restored after a loss, with its calls and subscriptions. */
export class Client {
  readonly url: string;
  readonly #options: ClientOptions;
  readonly #backoff: Backoff;
  readonly #emitter = new Emitter<ClientEvents>();
  readonly #calls: Calls;
  readonly #subscriptions: Subscriptions;
  #state: State = { name: "connecting" };
  #hello: Hello | null = null;
  #link: Link | null = null;
  #attempt = 0;
  #reconnection: ReturnType<typeof setTimeout> | undefined;
  /** Whether the gateway asked for the current wait. */
  #isAsked = false;
  /** Whether another token was fetched after a refusal. That is done once. */
  #renewed = false;
  #stopListening = () => {};

  /** @internal */
  constructor(url: string, options: ClientOptions) {
    this.url = url;
    this.#options = options;
    this.#backoff = { ...BACKOFF, ...options.backoff };
    this.#calls = new Calls({
      backoff: this.#backoff,
      grace: options.grace ?? 2000,
      maxQueue: options.maxQueue ?? 10_000,
    });
    this.#subscriptions = new Subscriptions({
      ask: (kind, payload) => this.#calls.ask(kind, payload),
      // The names that subscriptions use are among those of the client.
      tell: (name, value) => this.#tell(name, value as never),
      backoff: this.#backoff,
    });
    if (typeof addEventListener === "function" && typeof removeEventListener === "function") {
      const online = () => this.#online();
      addEventListener("online", online);
      this.#stopListening = () => removeEventListener("online", online);
    }
    void this.#connect("connect");
  }

  get state(): State {
    return this.#state;
  }

  /** The gateway's hello on the current connection, or on the last one. */
  get hello(): Hello | null {
    return this.#hello;
  }

  /** Call `listener` for every `name` from now on. Returns a function that removes it. */
  on<Name extends keyof ClientEvents>(name: Name, listener: (value: ClientEvents[Name]) => void): () => void {
    return this.#emitter.on(name, listener);
  }

  /** Call a method and return its result; fails with a typed error. Waits for a connection if there is none. */
  async request<Result = unknown>(
    service: string,
    method: string,
    params: object = {},
    options: CallOptions = {},
  ): Promise<Result> {
    return (await this.#call("request", { service, method, params: checked(params) }, options)) as Result;
  }

  /** Send a command. Returns once the mesh has accepted it, before it has run. */
  async command(service: string, method: string, params: object = {}, options: CallOptions = {}): Promise<void> {
    await this.#call("command", { service, method, params: checked(params) }, options);
  }

  /** Return the methods that the client may call, of one service or of all that the gateway knows. */
  async describe(service?: string, options: CallOptions = {}): Promise<Description> {
    return (await this.#call("describe", { service }, options)) as Description;
  }

  /**
   * Subscribe to topics (`*` matches one word, `#` any number of words). Events go to the callback; without one, iterate over
   * the result. Reconnections do not end a subscription.
   */
  subscribe<Event = unknown>(
    topics: string | readonly string[],
    callback?: ((event: GatewayEvent<Event>) => void) | null,
    options: SubscribeOptions = {},
  ): Subscription<Event> {
    const wanted = typeof topics === "string" ? [topics] : [...topics];
    if (wanted.length === 0) throw new TypeError("topics is empty: name at least one topic");
    const subscription = new Subscription<Event>(wanted, callback ?? null, options.buffer ?? 1000, (each) =>
      this.#subscriptions.end(each, null),
    );
    if (this.#state.name === "closed") {
      const error = this.#state.error ?? closedByApplication();
      subscription.end(error, error);
      return subscription;
    }
    this.#subscriptions.add(subscription);
    options.signal?.addEventListener("abort", () => subscription.unsubscribe(), { once: true });
    if (options.signal?.aborted) subscription.unsubscribe();
    return subscription;
  }

  /** Send another token of the same user on the open connection. Returns its expiry in seconds since 1970. */
  async authorize(token: string): Promise<number | null> {
    if (this.#state.name !== "open") throw new ConnectionLost(BROKEN, "not connected");
    const link = this.#link;
    const result = await this.#calls.ask("authorize", { token });
    const expiresAt = isObject(result) && typeof result.expires_at === "number" ? result.expires_at : null;
    if (this.#hello !== null && this.#link === link && link !== null) {
      this.#hello = { ...this.#hello, expires_at: expiresAt };
      this.#planRefresh(link);
    }
    return expiresAt;
  }

  /** Close the connection for good. Calls fail with `ConnectionClosed`, subscriptions end. */
  close(): void {
    if (this.#state.name !== "closed") this.#finish(null);
  }

  // --- connecting ---------------------------------------------------------------------------------------------

  async #connect(reason: TokenReason): Promise<void> {
    this.#setState({ name: "connecting" });
    const { getToken } = this.#options;
    let token: string | null | undefined;
    try {
      token = getToken === undefined ? this.#options.token : ((await getToken(reason)) ?? null);
    } catch (error) {
      if (!this.#isClosed) this.#retry(new ConnectionLost(BROKEN, "no token", { cause: error }), 0);
      return;
    }
    if (this.#isClosed) return;
    if (token === null) {
      this.#finish(new ConnectionClosed(INVALID_TOKEN, "there is no token any more"));
      return;
    }
    const inFrame = (this.#options.tokenIn ?? defaultTokenIn()) === "frame";
    const protocols = ["nuropb.v1"];
    if (token !== undefined && !inFrame) protocols.push(`base64url.bearer.nuropb.${base64url(token)}`);
    let socket: SocketLike;
    try {
      socket = new (this.#options.WebSocket ?? (WebSocket as unknown as SocketConstructor))(this.url, protocols);
    } catch (error) {
      // The page's Content-Security-Policy forbids the connection, and that does not change.
      this.#finish(new ConnectionClosed(BROKEN, "the page's policy forbids the connection", { cause: error }));
      return;
    }
    const link: Link = {
      socket,
      openedAt: null,
      heardAt: performance.now(),
      pingedAt: null,
      timers: {},
      lastError: null,
      stayAway: 0,
      notBefore: 0,
    };
    this.#link = link;
    link.timers.connect = after(this.#options.connectTimeout ?? 15_000, () => this.#drop(link, "no hello in time"));
    socket.onopen = () => {
      if (this.#link !== link) return;
      this.#calls.connected((text) => socket.send(text));
      this.#setState({ name: "authorising" });
      // A refusal is followed by the close of the connection, which reports it.
      if (token !== undefined && inFrame) this.#calls.ask("authorize", { token }).catch(() => {});
    };
    socket.onmessage = ({ data }: { data: unknown }) => this.#link === link && this.#receive(link, data);
    socket.onerror = () => {}; // the close event that follows has all information
    socket.onclose = ({ code, reason }: { code: number; reason: string }) => {
      if (this.#link === link) this.#closed(link, code, reason);
    };
  }

  /** Abort a connection. Waiting for a graceful close could take minutes if the network is down. */
  #drop(link: Link, reason: string): void {
    if (this.#link !== link) return;
    this.#closed(link, BROKEN, reason);
    link.socket.close(1000);
  }

  /** Handle the end of a connection: reconnect, or close for good. */
  #closed(link: Link, code: number, reason: string): void {
    this.#leave(link);
    const options = link.lastError === null ? undefined : { cause: link.lastError };
    const lost = new ConnectionLost(code, reason, options);
    this.#subscriptions.disconnected();
    this.#calls.lost(lost);
    if (link.openedAt !== null && performance.now() - link.openedAt >= (this.#options.stableAfter ?? 10_000)) {
      this.#attempt = 0;
    }
    if (code === INVALID_TOKEN && this.#options.getToken !== undefined && !this.#renewed && this.#comesBack) {
      this.#renewed = true;
      void this.#connect("rejected");
    } else if (isFinal(code)) {
      this.#finish(new ConnectionClosed(code, reason, options));
    } else {
      this.#retry(lost, Math.max(link.stayAway, link.notBefore - performance.now(), 0));
    }
  }

  #retry(error: ConnectionLost, asked: number): void {
    if (!this.#comesBack) {
      const { closeCode, reason, cause } = error;
      this.#finish(new ConnectionClosed(closeCode, reason, cause === undefined ? undefined : { cause }));
      return;
    }
    const delay = asked + jittered(this.#backoff, this.#attempt++);
    this.#isAsked = asked > 0;
    this.#reconnection = after(delay, () => void this.#connect("connect"));
    this.#setState({ name: "reconnecting", delay, error });
  }

  /** Reconnect at once when the browser is online again, unless the gateway asked for the wait. */
  #online(): void {
    const link = this.#link;
    if (this.#state.name === "reconnecting" && !this.#isAsked) {
      clearTimeout(this.#reconnection);
      void this.#connect("connect");
    } else if (this.#state.name === "open" && link !== null && link.pingedAt === null) {
      this.#ping(link);
      this.#watch(link);
    }
  }

  #finish(error: ConnectionClosed | null): void {
    const link = this.#link;
    if (link !== null) {
      this.#leave(link);
      link.socket.close(1000);
    }
    clearTimeout(this.#reconnection);
    this.#stopListening();
    this.#subscriptions.close(error);
    this.#calls.close(error ?? closedByApplication());
    this.#setState({ name: "closed", error });
  }

  #leave(link: Link): void {
    this.#link = null;
    for (const timer of Object.values(link.timers)) clearTimeout(timer);
  }

  get #isClosed(): boolean {
    return this.#state.name === "closed";
  }

  get #comesBack(): boolean {
    return this.#options.reconnect !== false;
  }

  // --- frames from the gateway --------------------------------------------------------------------------------

  #receive(link: Link, data: unknown): void {
    link.heardAt = performance.now();
    if (link.pingedAt !== null) {
      link.pingedAt = null;
      this.#watch(link);
    }
    const frame = parse(data);
    if (frame === null) {
      this.#tell("warning", new UnexpectedFrame("the gateway sent a message that is not a JSON object"));
      return;
    }
    const payload = isObject(frame.payload) ? frame.payload : {};
    switch (frame.type) {
      case "response": {
        const unexpected = this.#calls.answer(payload);
        if (unexpected !== null) this.#tell("warning", unexpected);
        return;
      }
      case "event":
        if (typeof payload.topic === "string") this.#onEvent(link, payload.topic, payload);
        else this.#tell("warning", new UnexpectedFrame("the gateway sent an event without a topic"));
        return;
      case "ping":
        link.socket.send(JSON.stringify({ type: "pong", payload: frame.payload }));
        return;
      case "pong":
        return;
      case "error":
        this.#onError(link, callFailed(frame));
        return;
      default:
        this.#tell("warning", new UnexpectedFrame("the gateway sent a frame of unknown type"));
    }
  }

  #onEvent(link: Link, topic: string, { event, trace_id }: Record<string, unknown>): void {
    if (topic === "hello") {
      this.#onHello(link, event);
    } else if (topic === "goodbye") {
      const payload = isObject(event) ? event : {};
      const retryAfter = (link.stayAway = obeyed(milliseconds(payload.retry_after_ms)));
      // The gateway closes the connection once no call is in flight, and a call that is sent now could be lost.
      this.#calls.hold();
      clearTimeout(link.timers.goodbye);
      link.timers.goodbye = after(GOODBYE_TIMEOUT, () => this.#drop(link, "the gateway is stopping"));
      this.#tell("goodbye", { reason: String(payload.reason ?? ""), retryAfter });
    } else if (!this.#subscriptions.notice(topic, event)) {
      const traceId = typeof trace_id === "string" ? trace_id : null;
      const received: GatewayEvent = { topic, event, traceId };
      this.#emitter.emit("event", received);
      this.#subscriptions.dispatch(received);
    }
  }

  #onHello(link: Link, event: unknown): void {
    const hello = (this.#hello = sound(event));
    const isFirst = link.openedAt === null;
    clearTimeout(link.timers.connect);
    link.openedAt ??= performance.now();
    this.#renewed = false;
    this.#calls.limits = {
      maxMessageSize: hello.limits.max_message_size,
      maxInFlight: hello.limits.max_in_flight,
      requestTimeout: hello.limits.request_timeout * 1000,
    };
    this.#planRefresh(link);
    this.#watch(link);
    if (!isFirst) {
      this.#calls.release(); // the limits may allow more calls now
      return;
    }
    this.#setState({ name: "open", hello });
    if (this.#link !== link) return; // closed by a listener
    this.#subscriptions.connected();
    this.#calls.release();
  }

  #onError(link: Link, error: CallFailed): void {
    link.lastError = error;
    link.notBefore = performance.now() + obeyed(error.retryAfter);
    // Before hello it is the reason why the gateway then closes the connection.
    if (link.openedAt !== null) this.#tell("warning", error);
  }

  // --- replacing the token ------------------------------------------------------------------------------------

  #planRefresh(link: Link): void {
    clearTimeout(link.timers.refresh);
    const { expires_at: expiresAt } = this.#hello!;
    if (expiresAt === null || this.#options.getToken === undefined) return;
    const left = expiresAt * 1000 - Date.now();
    // The clocks disagree by more than the token's lifetime. Only the gateway knows the end, and closes then (4005).
    if (left <= 0) return;
    const margin = Math.min(this.#options.refreshMargin ?? 60_000, left / 4) * (0.5 + this.#backoff.random() / 2);
    link.timers.refresh = after(left - margin, () => void this.#refresh(link, expiresAt, 0));
  }

  async #refresh(link: Link, expiresAt: number, attempt: number): Promise<void> {
    let problem: unknown;
    try {
      const token = await this.#options.getToken!("refresh");
      if (this.#link !== link) return;
      if (token !== null) {
        await this.authorize(token);
        return;
      }
      problem = new Unauthenticated({ code: "unauthenticated", description: "there is no token any more" });
    } catch (error) {
      problem = error;
    }
    if (this.#link !== link) return;
    this.#tell("warning", new TokenRefreshFailed(problem));
    // A token of another user is refused here. It is used for the next connection, after this one ends.
    const wait = jittered(this.#backoff, attempt);
    if (problem instanceof PermissionDenied || Date.now() + wait >= expiresAt * 1000) return;
    link.timers.refresh = after(wait, () => void this.#refresh(link, expiresAt, attempt + 1));
  }

  // --- pings --------------------------------------------------------------------------------------------------

  #watch(link: Link): void {
    const interval =
      this.#options.pingInterval ?? Math.min(this.#hello!.limits.ping_interval * 1000, MAX_PING_INTERVAL);
    const timeout = this.#options.pingTimeout ?? 10_000;
    clearTimeout(link.timers.silence);
    const look = () => {
      const now = performance.now();
      if (link.pingedAt !== null && now - link.pingedAt >= timeout) {
        this.#drop(link, "the gateway does not answer");
        return;
      }
      if (link.pingedAt === null && now - link.heardAt >= interval) this.#ping(link);
      const next = link.pingedAt === null ? link.heardAt + interval : link.pingedAt + timeout;
      link.timers.silence = after(next - performance.now(), look);
    };
    look();
  }

  #ping(link: Link): void {
    link.pingedAt = performance.now();
    link.socket.send('{"type":"ping"}');
  }

  // --- the application ----------------------------------------------------------------------------------------

  #call(kind: "request" | "command" | "describe", payload: Record<string, unknown>, options: CallOptions) {
    if (this.#state.name === "closed") throw this.#state.error ?? closedByApplication();
    return this.#calls.call(kind, payload, options);
  }

  #setState(state: State): void {
    this.#state = state;
    this.#emitter.emit("state", state);
  }

  #tell<Name extends keyof ClientEvents>(name: Name, value: ClientEvents[Name]): void {
    const heard = this.#emitter.emit(name, value);
    if (!heard && name === "warning") console.warn("nuropb-gateway-client:", value);
  }
}

/** The services that the client may call. */
export interface Description {
  services: Record<
    string,
    {
      description: string;
      version: string;
      methods: Record<string, { description: string; parameters: object; requires_encryption: boolean }>;
    }
  >;
  /** Services that did not answer. */
  unavailable: string[];
}

function closedByApplication(): ConnectionClosed {
  return new ConnectionClosed(1000, "by the application");
}

function checked(params: object): object {
  if (!isObject(params)) throw new TypeError("params must be an object: its members are the method's arguments");
  return params;
}

/** Outside of browsers a refused handshake has no close code; a refused first frame has one. */
function defaultTokenIn(): "subprotocol" | "frame" {
  return typeof location === "undefined" ? "frame" : "subprotocol";
}

function base64url(token: string): string {
  const bytes = new TextEncoder().encode(token);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function parse(data: unknown): Record<string, unknown> | null {
  if (typeof data !== "string") return null;
  try {
    const frame: unknown = JSON.parse(data);
    return isObject(frame) ? frame : null;
  } catch {
    return null;
  }
}

/** Read a hello. Missing and invalid members get their defaults. */
function sound(event: unknown): Hello {
  const given = isObject(event) ? event : {};
  const limits = isObject(given.limits) ? given.limits : {};
  const positive = (value: unknown, usual: number) => (typeof value === "number" && value > 0 ? value : usual);
  const text = (value: unknown) => (typeof value === "string" ? value : "");
  return {
    session_id: text(given.session_id),
    user_id: text(given.user_id),
    username: text(given.username),
    protocol: text(given.protocol),
    instance_id: text(given.instance_id),
    expires_at: typeof given.expires_at === "number" ? given.expires_at : null,
    limits: {
      max_message_size: positive(limits.max_message_size, LIMITS.maxMessageSize),
      max_in_flight: positive(limits.max_in_flight, LIMITS.maxInFlight),
      request_timeout: positive(limits.request_timeout, LIMITS.requestTimeout / 1000),
      ping_interval: positive(limits.ping_interval, MAX_PING_INTERVAL / 1000),
    },
  };
}
