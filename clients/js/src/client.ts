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

/** What the gateway says first on every connection. */
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

/** Where the client is on its way to the gateway. */
export type State =
  /** A token is fetched, a connection is made. */
  | { name: "connecting" }
  /** There is a connection, and the gateway looks at the token. */
  | { name: "authorising" }
  | { name: "open"; hello: Hello }
  /** Waiting for `delay` milliseconds, because of `error`. */
  | { name: "reconnecting"; delay: number; error: GatewayError }
  /** For good; `error` is null if the application closed it. */
  | { name: "closed"; error: ConnectionClosed | null };

/** What a client tells of, by `on`. */
export interface ClientEvents {
  state: State;
  /** Every event of the mesh, also those with a target, which come without a subscription. */
  event: GatewayEvent;
  gap: Gap;
  dropped: Dropped;
  unsubscribed: UnsubscribedNotice;
  /** The gateway will stop; the client comes back by itself. */
  goodbye: { reason: string; retryAfter: number };
  /** Something is wrong that belongs to no call. Without a listener it is written to the console. */
  warning: GatewayError;
}

/** Why a token is wanted. */
export type TokenReason = "connect" | "refresh" | "rejected";

/**
 * A token, from wherever they come from. Null says that there is none any more: the client closes. An error says that
 * there is none now: it tries again.
 */
export type GetToken = (reason: TokenReason) => string | null | Promise<string | null>;

/** As much of a WebSocket as is needed. */
export interface SocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export type SocketConstructor = new (url: string, protocols: string[]) => SocketLike;

/** All times are in milliseconds. */
export interface ClientOptions {
  /** Asked for every connection, and before a token expires. Not needed where a cookie has the token. */
  getToken?: GetToken | undefined;
  /** A token that never changes, in the place of `getToken`. */
  token?: string | undefined;
  /**
   * How the token travels: as a subprotocol (browsers), or in the first frame (elsewhere, where a refusal would only
   * look like a broken connection). A token of more than some 6 kB has to use the frame.
   */
  tokenIn?: "subprotocol" | "frame" | undefined;
  /** In the place of the global WebSocket. */
  WebSocket?: SocketConstructor | undefined;
  /** Whether to come back after a loss. True. */
  reconnect?: boolean | undefined;
  backoff?: Partial<Backoff> | undefined;
  /** A connection that lasted so long was a good one: the waiting begins anew. 10 s. */
  stableAfter?: number | undefined;
  /** From the beginning of a connection to the gateway's hello. 15 s. */
  connectTimeout?: number | undefined;
  /** After so much silence the gateway is asked whether it is there. As the gateway's own interval, at most 30 s. */
  pingInterval?: number | undefined;
  /** How long the answer may take. 10 s. */
  pingTimeout?: number | undefined;
  /** How long before its end a token is replaced: at most this, at most a quarter of what is left. 60 s. */
  refreshMargin?: number | undefined;
  /** How much longer than its timeout a call waits for the gateway to say so itself. 2 s. */
  grace?: number | undefined;
  /** How many calls may wait to be sent. 10 000. */
  maxQueue?: number | undefined;
}

const PING_INTERVAL = 30_000;
/** Milliseconds for a gateway that said goodbye to hang up. */
const GOODBYE_PATIENCE = 30_000;
/** Code for a connection that the client gives up: it looks like one that broke. */
const BROKEN = 1006;
/** The close codes that say something of the token: it is not valid, or it was valid for too long. */
const INVALID_TOKEN = 4510;

/** One connection: from the socket to its end. */
interface Link {
  socket: SocketLike;
  openedAt: number | null;
  heardAt: number;
  pingedAt: number | null;
  timers: { [name in "connect" | "silence" | "refresh" | "goodbye"]?: ReturnType<typeof setTimeout> };
  /** What the gateway said before it hung up. */
  lastError: CallFailed | null;
  /** How long the gateway asked to stay away once this connection has ended, in milliseconds. */
  stayAway: number;
  /** And not to come back before this moment. */
  notBefore: number;
}

/** A connection to a gateway that makes itself anew, with all that belongs to it. */
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
  /** The gateway itself asked to wait. */
  #isAsked = false;
  /** A token was refused and another one fetched: that is done once. */
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
      // What subscriptions have to tell is a part of what the client tells.
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

  /** What the gateway said first on the connection that is open, or was open last. */
  get hello(): Hello | null {
    return this.#hello;
  }

  /** Call `listener` from now on; the result ends that. */
  on<Name extends keyof ClientEvents>(name: Name, listener: (value: ClientEvents[Name]) => void): () => void {
    return this.#emitter.on(name, listener);
  }

  /** Call a method; what it returns, or a typed error. Waits for a connection if there is none. */
  async request<Result = unknown>(
    service: string,
    method: string,
    params: object = {},
    options: CallOptions = {},
  ): Promise<Result> {
    return (await this.#call("request", { service, method, params: checked(params) }, options)) as Result;
  }

  /** Call a method for its effect. Returns once the mesh has taken the command, not when it has run. */
  async command(service: string, method: string, params: object = {}, options: CallOptions = {}): Promise<void> {
    await this.#call("command", { service, method, params: checked(params) }, options);
  }

  /** What may be called: of one service, or of all that the gateway knows of. */
  async describe(service?: string, options: CallOptions = {}): Promise<Description> {
    return (await this.#call("describe", { service }, options)) as Description;
  }

  /**
   * Receive events of some topics (`*` stands for one word, `#` for any number of them): by a callback, or by
   * iterating over the result. Lasts over reconnections, until it is ended.
   */
  subscribe<Event = unknown>(
    topics: string | readonly string[],
    callback?: ((event: GatewayEvent<Event>) => void) | null,
    options: SubscribeOptions = {},
  ): Subscription<Event> {
    const wanted = typeof topics === "string" ? [topics] : [...topics];
    if (wanted.length === 0) throw new TypeError("there must be a topic to subscribe to");
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

  /** Send another token on the open connection, of the same user; when it expires, in seconds since 1970. */
  async authorize(token: string): Promise<number | null> {
    if (this.#state.name !== "open") throw new ConnectionLost(BROKEN, "there is no connection");
    const link = this.#link;
    const result = await this.#calls.ask("authorize", { token });
    const expiresAt = isObject(result) && typeof result.expires_at === "number" ? result.expires_at : null;
    if (this.#hello !== null && this.#link === link && link !== null) {
      this.#hello = { ...this.#hello, expires_at: expiresAt };
      this.#planRefresh(link);
    }
    return expiresAt;
  }

  /** Hang up and do not come back. Calls fail with `ConnectionClosed`, subscriptions end. */
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
      // The page's own policy forbids it; that does not change.
      this.#finish(new ConnectionClosed(BROKEN, "the connection is not allowed", { cause: error }));
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
      // Whatever comes of it: a refusal is followed by the end of the connection, which tells.
      if (token !== undefined && inFrame) this.#calls.ask("authorize", { token }).catch(() => {});
    };
    socket.onmessage = ({ data }: { data: unknown }) => this.#link === link && this.#receive(link, data);
    socket.onerror = () => {}; // the close event that follows says it all
    socket.onclose = ({ code, reason }: { code: number; reason: string }) => {
      if (this.#link === link) this.#closed(link, code, reason);
    };
  }

  /** Give a connection up: to close it in good order could take minutes if the network is gone. */
  #drop(link: Link, reason: string): void {
    if (this.#link !== link) return;
    this.#closed(link, BROKEN, reason);
    link.socket.close(1000);
  }

  /** The connection has ended. */
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

  /** The network is back, says the browser: no need to wait, unless the gateway asked for it. */
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
      this.#tell("warning", new UnexpectedFrame("a message that is not a JSON object"));
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
        else this.#tell("warning", new UnexpectedFrame("an event without a topic"));
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
        this.#tell("warning", new UnexpectedFrame("a frame of an unknown type"));
    }
  }

  #onEvent(link: Link, topic: string, { event, trace_id }: Record<string, unknown>): void {
    if (topic === "hello") {
      this.#onHello(link, event);
    } else if (topic === "goodbye") {
      const payload = isObject(event) ? event : {};
      const retryAfter = (link.stayAway = milliseconds(payload.retry_after_ms) ?? 0);
      // What is sent now could be lost when the gateway hangs up, which it does once nothing is in flight.
      this.#calls.hold();
      clearTimeout(link.timers.goodbye);
      link.timers.goodbye = after(GOODBYE_PATIENCE, () => this.#drop(link, "the gateway is stopping"));
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
      this.#calls.release(); // there may be room for more now
      return;
    }
    this.#setState({ name: "open", hello });
    if (this.#link !== link) return; // closed by a listener
    this.#subscriptions.connected();
    this.#calls.release();
  }

  #onError(link: Link, error: CallFailed): void {
    link.lastError = error;
    link.notBefore = performance.now() + (error.retryAfter ?? 0);
    // Before hello it is the reason for the close that follows.
    if (link.openedAt !== null) this.#tell("warning", error);
  }

  // --- the token's end ----------------------------------------------------------------------------------------

  #planRefresh(link: Link): void {
    clearTimeout(link.timers.refresh);
    const { expires_at: expiresAt } = this.#hello!;
    if (expiresAt === null || this.#options.getToken === undefined) return;
    const left = expiresAt * 1000 - Date.now();
    // If the clocks disagree as much as that, only the gateway knows when the token ends: it hangs up then (4005).
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
    // Another user's token is for another connection, which there is when this one has ended.
    const wait = jittered(this.#backoff, attempt);
    if (problem instanceof PermissionDenied || Date.now() + wait >= expiresAt * 1000) return;
    link.timers.refresh = after(wait, () => void this.#refresh(link, expiresAt, attempt + 1));
  }

  // --- is the gateway still there? ----------------------------------------------------------------------------

  #watch(link: Link): void {
    const interval =
      this.#options.pingInterval ?? Math.min(this.#hello!.limits.ping_interval * 1000, PING_INTERVAL);
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

/** The services that may be called. */
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

/** Elsewhere than in a browser a refused handshake has no code; the first frame is answered with one. */
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

/** The hello, with the usual in the place of what is missing or wrong. */
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
      ping_interval: positive(limits.ping_interval, PING_INTERVAL / 1000),
    },
  };
}
