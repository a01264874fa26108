import { BACKOFF, type Backoff, after, jittered } from "./backoff.js";
import { type CallOptions, Calls } from "./calls.js";
import { checkNames, checkParams, checkService, checkTopics } from "./checks.js";
import { Emitter } from "./emitter.js";
import {
  type CallFailed,
  ConnectionClosed,
  ConnectionLost,
  PermissionDenied,
  TokenRefreshFailed,
  Unauthenticated,
  UnexpectedFrame,
  callFailed,
  isFinal,
  milliseconds,
  obeyed,
} from "./errors.js";
import { type Frame, MAX_PING_INTERVAL, idOf, isCounted, parse, sound, texts } from "./frames.js";
import { HttpSocket } from "./http.js";
import { type Link, makeLink } from "./link.js";
import { isObject } from "./objects.js";
import { Pulse } from "./pulse.js";
import { Session, keep } from "./session.js";
import { type GatewayEvent, type Position, type SubscribeOptions, Subscription, Subscriptions } from "./subscriptions.js";
import { Tokens } from "./tokens.js";
import type {
  ClientEvents,
  ClientOptions,
  Description,
  Hello,
  SocketConstructor,
  SocketLike,
  State,
  TokenReason,
} from "./types.js";

/** Milliseconds for a gateway that said goodbye to close the connection. */
const GOODBYE_TIMEOUT = 30_000;
/** The close code of a connection that broke, or that the client aborted. */
const BROKEN = 1006;
/** The close code for a token that was valid, and has expired. */
const TOKEN_EXPIRED = 4005;
/** The close code for an invalid token. */
const INVALID_TOKEN = 4510;
const AUTHORISATION_TIMEOUT = 4502;

/** The code with which the client closes a connection that it gives up. After 1000 the gateway would end the session. */
const GIVEN_UP = 4000;
/** The close code of a gateway that could not attribute several frames of the client. */
const BAD_REQUEST = 4501;
/** Milliseconds for the gateway to close a connection whose session has moved to another one. */
const MOVED_TIMEOUT = 10_000;
/** Ids of the client's own requests; those of calls are numbers. */
const RESUME = "resume";
const AUTHORIZE = "authorize";
/** How long the first connection waits for a hello if the application gave no token, and what it is told then. */
const TOKEN_PATIENCE = 2_000;
const NO_TOKEN = "no token was given: pass getToken, which fetches one from your sign-in, or set AUTH_COOKIE on the gateway";

/**
 * Milliseconds for the answer to a ping when a page wakes up, for an attempt to connect that began before, and for calls
 * over HTTP to be answered before a WebSocket is tried once more.
 */
const WAKE_TIMEOUT = 5000;
/** Milliseconds from the error of a connection to its close event. */
const ERROR_TIMEOUT = 1000;
/** Events of a page at which connections are looked after. */
const PAGE_EVENTS = ["online", "visibilitychange", "pageshow", "resume", "securitypolicyviolation"];

/** Attempts in a row without a hello after which every other attempt goes over HTTP; more if a session is at stake. */
const BLOCKED_AFTER = 3;
const BLOCKED_AFTER_WITH_SESSION = 8;
/** Milliseconds after which a client that is connected over HTTP tries a WebSocket. */
const WEBSOCKET_AGAIN = 60_000;

/** A client of a gateway: a connection that is restored after a loss, with its calls and subscriptions. */
export class Client {
  readonly url: string;
  readonly #options: ClientOptions;
  readonly #backoff: Backoff;
  readonly #emitter = new Emitter<ClientEvents>();
  readonly #calls: Calls;
  readonly #subscriptions: Subscriptions;
  readonly #tokens: Tokens;
  readonly #pulse: Pulse;
  #state: State = { name: "connecting" };
  #hello: Hello | null = null;
  /** The connection in use. */
  #link: Link | null = null;
  /** The connection that is opened beside it, after a goodbye. */
  #next: Link | null = null;
  readonly #session = new Session();
  /** The attempt to connect that waits for a token. */
  #opening: object | null = null;
  /** The reason for which the next connection needs a token. */
  #reason: TokenReason = "connect";
  /** Number of attempts in a row without a hello. */
  #blocked = 0;
  #attempt = 0;
  #reconnection: ReturnType<typeof setTimeout> | undefined;
  /** Whether the gateway asked for the current wait. */
  #isAsked = false;
  /** Whether another token was fetched after a refusal. That is done once. */
  #renewed = false;
  #stopListening = () => {};
  #stopKeeping = () => {};

  /** @internal */
  constructor(url: string, options: ClientOptions) {
    this.url = url;
    this.#options = options;
    this.#backoff = { ...BACKOFF, ...options.backoff };
    this.#calls = new Calls({
      backoff: this.#backoff,
      grace: options.grace ?? 2000,
      maxQueue: options.maxQueue ?? 10_000,
      trace: options.trace,
    });
    this.#subscriptions = new Subscriptions({
      ask: (kind, payload, answered) => this.#calls.ask(kind, payload, answered),
      // The names that subscriptions use are among those of the client.
      tell: (name, value) => this.#tell(name, value as never),
      backoff: this.#backoff,
    });
    this.#tokens = new Tokens(options.getToken, options.token);
    const interval = () =>
      options.pingInterval ?? Math.min(this.#hello!.limits.ping_interval * 1000, MAX_PING_INTERVAL);
    const drop = (link: Link, reason: string) => this.#drop(link, reason);
    this.#pulse = new Pulse(this.#calls, interval, options.pingTimeout ?? 10_000, drop);
    this.#begin();
    void this.#connect("connect");
  }

  get state(): State {
    return this.#state;
  }

  /** The gateway's hello on the current connection, or on the last one. */
  get hello(): Hello | null {
    return this.#hello;
  }

  /** The way of the current connection; null without one. */
  get transport(): "websocket" | "sse" | null {
    return this.#link === null ? null : this.#link.isHttp ? "sse" : "websocket";
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
    return (await this.#call("request", checkNames(service, method), options, params)) as Result;
  }

  /** Send a command. Returns once the mesh has accepted it, before it has run. */
  async command(service: string, method: string, params: object = {}, options: CallOptions = {}): Promise<void> {
    await this.#call("command", checkNames(service, method), options, params);
  }

  /** Return the methods that the client may call, of one service or of all that the gateway knows. */
  async describe(service?: string, options: CallOptions = {}): Promise<Description> {
    if (service !== undefined) checkService(service);
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
    checkTopics(wanted);
    const subscription = new Subscription<Event>(wanted, callback ?? null, options, (each) =>
      this.#subscriptions.end(each, null),
    );
    if (this.#state.name === "closed") {
      const error = this.#state.error ?? closedByApplication();
      subscription.end(error, error);
      return subscription;
    }
    this.#subscriptions.add(subscription);
    const { signal } = options;
    if (signal) {
      const abort = () => subscription.unsubscribe();
      signal.addEventListener("abort", abort);
      subscription.release = () => signal.removeEventListener("abort", abort);
      if (signal.aborted) abort();
    }
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

  /**
   * Connect anew, at once. After a close for good, too: then the subscriptions that it has ended begin again, with a
   * gap.
   */
  reconnect(): void {
    this.#renewed = false;
    if (this.#state.name === "closed") {
      this.#attempt = 0;
      this.#begin();
      this.#subscriptions.reopen();
      void this.#connect("connect");
    } else if (this.#link !== null) {
      this.#restart(this.#link, "the application reconnects");
    } else {
      this.#hurry();
    }
  }

  // --- connecting ---------------------------------------------------------------------------------------------

  /** Open a connection: the one to use, or, if there is one, another beside it. */
  async #connect(reason: TokenReason): Promise<void> {
    const former = this.#link;
    const attempt = (this.#opening = {});
    if (former === null) this.#setState({ name: "connecting" });
    let token: string | null | undefined;
    try {
      token = await this.#tokens.ask(reason);
    } catch (error) {
      if (this.#opening !== attempt) return;
      if (former === null) this.#retry(new ConnectionLost(BROKEN, "no token", { cause: error }), 0);
      else this.#move(former, 0);
      return;
    }
    if (this.#opening !== attempt) return;
    this.#opening = null;
    if (token === null) {
      // Beside another connection, this is told when that one has ended.
      if (former === null) this.#finish(new ConnectionClosed(INVALID_TOKEN, "there is no token any more"));
      return;
    }
    const inFrame = (this.#options.tokenIn ?? defaultTokenIn()) === "frame";
    const protocols = ["nuropb.v1"];
    if (token !== undefined && !inFrame) protocols.push(`base64url.bearer.nuropb.${base64url(token)}`);
    let socket: SocketLike;
    const isHttp = this.#goesOverHttp(former);
    try {
      if (isHttp) socket = new HttpSocket(this.url, token, this.#options);
      else socket = new (this.#options.WebSocket ?? (WebSocket as unknown as SocketConstructor))(this.url, protocols);
    } catch (error) {
      // The page's Content-Security-Policy forbids the connection, and that does not change.
      this.#finish(new ConnectionClosed(BROKEN, "the page's policy forbids the connection", { cause: error }));
      return;
    }
    const link = makeLink(socket, isHttp);
    if (former === null) this.#link = link;
    else this.#next = link;
    link.timers.connect = after(this.#options.connectTimeout ?? 15_000, () => this.#drop(link, "no hello in time"));
    socket.onopen = () => {
      if (link === this.#link) this.#setState({ name: "authorising" });
      if (token === undefined && this.#hello === null && !isHttp) {
        // Where a cookie has the token, the gateway says hello at once.
        link.timers.token = after(TOKEN_PATIENCE, () => {
          if (link.hello === null) this.#drop(link, NO_TOKEN, AUTHORISATION_TIMEOUT);
        });
      }
      if (!this.#has(link) || token === undefined || !inFrame) return;
      // A refusal is followed by the close of the connection, which reports it.
      socket.send(JSON.stringify({ type: "authorize", payload: { id: AUTHORIZE, token } }));
    };
    socket.onmessage = ({ data }: { data: unknown }) => this.#has(link) && this.#receive(link, data);
    socket.onerror = ({ error, message }: { error?: unknown; message?: unknown }) => {
      link.problem = error ?? (message ? new Error(String(message)) : undefined);
      // A close event follows, except in browsers whose page's policy forbids the connection.
      link.timers.error = after(ERROR_TIMEOUT, () => this.#drop(link, "the connection failed"));
    };
    socket.onclose = ({ code, reason }: { code: number; reason: string }) => {
      if (this.#has(link)) this.#closed(link, code, reason);
    };
  }

  /**
   * Whether the next connection goes over HTTP. A connection beside another one is a WebSocket; and so is every one in
   * React Native, which has no streams.
   */
  #goesOverHttp(former: Link | null): boolean {
    const { transport = "auto", WebSocket: given } = this.#options;
    if (transport !== "auto") return transport === "sse";
    if (given !== undefined || former !== null || typeof ReadableStream === "undefined") return false;
    const limit = this.#session.key === "" ? BLOCKED_AFTER : BLOCKED_AFTER_WITH_SESSION;
    return this.#blocked >= limit && this.#blocked % 2 === limit % 2;
  }

  #has(link: Link): boolean {
    return link === this.#link || link === this.#next;
  }

  /** Abort a connection. Waiting for a graceful close could take minutes if the network is down. */
  #drop(link: Link, reason: string, code = BROKEN): void {
    if (!this.#has(link)) return;
    this.#closed(link, code, reason);
    link.socket.close(GIVEN_UP);
  }

  /** Handle the end of a connection: go on with the one beside it, reconnect, or close for good. */
  #closed(link: Link, code: number, reason: string): void {
    const wait = Math.max(link.stayAway, link.notBefore - performance.now(), 0);
    if (link.openedAt === null && code === BROKEN) this.#blocked++;
    this.#reason = code === TOKEN_EXPIRED ? "expired" : "connect";
    if (link === this.#next) {
      this.#leave(link);
      const used = this.#link!;
      this.#handleHeld(used);
      if (this.#link !== used) return;
      if (used.replay === null) this.#calls.release();
      this.#move(used, used.isHttp ? WEBSOCKET_AGAIN : wait);
      return;
    }
    const cause = link.lastError ?? link.problem;
    const options = cause === undefined ? undefined : { cause };
    const lost = new ConnectionLost(code, reason, options);
    // A client that the gateway has greeted is well, except for one call.
    const isFatal = isFinal(code) && !(code === BAD_REQUEST && link.openedAt !== null);
    this.#leave(link);
    // A refused connection is no end of the session that it should have resumed.
    if (link.isCounting && isFinal(code)) this.#session.end();
    this.#suspend(lost, code !== BAD_REQUEST);
    if (link.openedAt !== null && performance.now() - link.openedAt >= (this.#options.stableAfter ?? 10_000)) {
      this.#attempt = 0;
    }
    const next = this.#next;
    if (next !== null) {
      this.#next = null;
      this.#link = next;
      this.#setState({ name: next.openedAt === null ? "connecting" : "authorising" });
    } else if (code === INVALID_TOKEN && this.#options.getToken !== undefined && !this.#renewed && this.#comesBack) {
      this.#renewed = true;
      void this.#connect("rejected");
    } else if (isFatal) {
      this.#finish(new ConnectionClosed(code, reason, options));
    } else {
      this.#retry(lost, wait);
    }
  }

  /** Keep the calls of a lost connection for the session's next one, or end them if there is no session to resume. */
  #suspend(lost: ConnectionLost, repeats = true): void {
    this.#session.pause();
    this.#subscriptions.disconnected();
    if (this.#session.key !== "" && this.#comesBack) this.#calls.suspend(lost);
    else this.#calls.lost(lost, repeats);
  }

  #retry(error: ConnectionLost, asked: number): void {
    if (!this.#comesBack) {
      // As options, the error has its own cause, if there is one.
      this.#finish(new ConnectionClosed(error.closeCode, error.reason, error));
      return;
    }
    this.#calls.reason = `: ${error.message}`;
    const delay = asked + jittered(this.#backoff, this.#attempt++);
    this.#isAsked = asked > 0;
    this.#reconnection = after(delay, () => void this.#connect(this.#reason));
    this.#setState({ name: "reconnecting", delay, error });
  }

  /** Open another connection beside `link` in `wait` milliseconds or somewhat later, and resume the session there. */
  #move(link: Link, wait: number): void {
    clearTimeout(link.timers.goodbye);
    link.timers.goodbye = after(wait + jittered(this.#backoff, link.moves++), () => {
      if (this.#next === null) void this.#connect("connect");
    });
  }

  /** Listen to the page, and take the session of its predecessor. */
  #begin(): void {
    const { storage } = this.#options;
    if (storage !== undefined) this.#stopKeeping = keep(storage, this.url, this.#session, this.#calls);
    if (typeof addEventListener !== "function" || typeof removeEventListener !== "function") return;
    const listener = (event: Event) => this.#onPage(event);
    for (const name of PAGE_EVENTS) addEventListener(name, listener, true);
    this.#stopListening = () => PAGE_EVENTS.forEach((name) => removeEventListener(name, listener, true));
  }

  /** See whether the connection is alive when the page wakes up or the network is back. */
  #onPage(event: Event): void {
    const link = this.#link;
    if (event.type === "securitypolicyviolation") {
      const { blockedURI, disposition } = event as SecurityPolicyViolationEvent;
      const isOurs = link !== null && link.openedAt === null && hostOf(blockedURI) === hostOf(this.url);
      if (isOurs && disposition === "enforce") {
        this.#finish(new ConnectionClosed(BROKEN, "the page's policy forbids the connection"));
      }
    } else if (event.type === "visibilitychange" && document.visibilityState !== "visible") {
      return;
    } else if (link === null) {
      if (!this.#isAsked) this.#hurry();
    } else if (link.openedAt !== null) {
      this.#pulse.ping(link, WAKE_TIMEOUT);
      this.#pulse.watch(link);
    } else if (event.type === "online" || performance.now() - link.startedAt > WAKE_TIMEOUT) {
      this.#restart(link, "the network has changed");
    }
  }

  /** Wait no longer for the next attempt. */
  #hurry(): void {
    if (this.#state.name !== "reconnecting") return;
    clearTimeout(this.#reconnection);
    void this.#connect(this.#reason);
  }

  #restart(link: Link, reason: string): void {
    this.#drop(link, reason);
    this.#hurry();
  }

  #finish(error: ConnectionClosed | null): void {
    for (const link of [this.#link, this.#next]) {
      if (link === null) continue;
      this.#leave(link);
      link.socket.close(1000);
    }
    this.#opening = null;
    this.#session.end();
    clearTimeout(this.#reconnection);
    this.#stopListening();
    this.#stopKeeping();
    this.#subscriptions.close(error);
    this.#calls.close(error ?? closedByApplication());
    this.#setState({ name: "closed", error });
  }

  #leave(link: Link): void {
    if (link === this.#link) this.#link = this.#opening = null;
    else this.#next = null;
    for (const timer of Object.values(link.timers)) clearTimeout(timer);
  }

  get #comesBack(): boolean {
    return this.#options.reconnect !== false;
  }

  // --- frames from the gateway --------------------------------------------------------------------------------

  #receive(link: Link, data: unknown): void {
    this.#pulse.heard(link);
    const frame = parse(data, this.#options.parse);
    if (frame === null) {
      this.#tell("warning", new UnexpectedFrame("the gateway sent a message that is not a JSON object"));
      return;
    }
    if (link.held !== null && isCounted(frame) && !(link.isResuming && idOf(frame) === RESUME)) link.held.push(frame);
    else this.#handle(link, frame);
  }

  #handle(link: Link, frame: Frame): void {
    const { replay } = link;
    if (link.isCounting && isCounted(frame)) {
      this.#session.count((text) => link.socket.send(text));
      if (replay !== null) replay.left--;
    }
    this.#onFrame(link, frame);
    if (replay !== null && replay.left <= 0 && link.replay === replay && this.#link === link) this.#reconcile(link);
  }

  #onFrame(link: Link, frame: Frame): void {
    const payload = isObject(frame.payload) ? frame.payload : {};
    switch (frame.type) {
      case "response": {
        if (payload.id === AUTHORIZE) return;
        if (payload.id === RESUME && link.isResuming) {
          this.#onResumed(link, payload);
          return;
        }
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

  #onEvent(link: Link, topic: string, { event, trace_id, position }: Record<string, unknown>): void {
    if (topic === "hello") {
      this.#onHello(link, event);
    } else if (topic === "goodbye") {
      const payload = isObject(event) ? event : {};
      const retryAfter = (link.stayAway = obeyed(milliseconds(payload.retry_after_ms)));
      link.isLeaving = true;
      this.#obey(link);
      this.#tell("goodbye", { reason: String(payload.reason ?? ""), retryAfter });
    } else if (!this.#subscriptions.notice(topic, event)) {
      const traceId = typeof trace_id === "string" ? trace_id : null;
      const received: GatewayEvent = { topic, event, traceId };
      if (isObject(position)) received.position = position as unknown as Position;
      this.#emitter.emit("event", received);
      this.#subscriptions.dispatch(received);
    }
  }

  /** Act on a goodbye: move the session to another connection, or wait for the end of this one. */
  #obey(link: Link): void {
    if (!link.isLeaving || link.isResuming || link !== this.#link) return;
    if (link.isCounting && this.#comesBack) {
      this.#move(link, link.stayAway);
      return;
    }
    // The gateway closes the connection once no call is in flight, and a call that is sent now could be lost.
    this.#calls.hold();
    clearTimeout(link.timers.goodbye);
    link.timers.goodbye = after(GOODBYE_TIMEOUT, () => this.#drop(link, "the gateway is stopping"));
  }

  #onHello(link: Link, event: unknown): void {
    const isFirst = link.hello === null;
    const hello = (link.hello = sound(event));
    link.openedAt ??= performance.now();
    this.#renewed = false;
    this.#blocked = 0;
    if (!isFirst) {
      if (link !== this.#link || link.held !== null) return;
      this.#use(link, hello);
      this.#calls.release(); // the limits may allow more calls now
      return;
    }
    if (link === this.#next && this.#link!.isHttp && this.#calls.waitingSince < Infinity) {
      // Calls over HTTP would be lost.
      this.#leave(link);
      link.socket.close(GIVEN_UP);
      this.#move(this.#link!, WAKE_TIMEOUT);
      return;
    }
    const isResuming = hello.resume && this.#options.resume !== false && this.#comesBack;
    const { key, received } = this.#session;
    if (isResuming) {
      link.isResuming = true;
      const more = key === "" ? {} : { key, received };
      link.socket.send(JSON.stringify({ type: "resume", payload: { id: RESUME, ...more } }));
    }
    if (!isResuming || key === "") {
      this.#open(link, undefined, undefined);
      return;
    }
    link.held = [];
    if (link === this.#next) {
      // Frames that come on the old connection from now on are sent again on the new one, if the session moves.
      this.#link!.held = [];
      this.#calls.hold();
    }
  }

  #onResumed(link: Link, payload: Record<string, unknown>): void {
    link.isResuming = false;
    const result = isObject(payload.result) ? payload.result : {};
    const key = typeof result.key === "string" ? result.key : "";
    const resumed = result.resumed === true;
    const held = link.held;
    link.held = null;
    if (held !== null && !resumed) {
      if (link === this.#next) this.#handleHeld(this.#link!);
      this.#session.end();
    }
    this.#session.renew(key, resumed ? this.#session.received : 0);
    link.isCounting = key !== "";
    if (held === null) {
      this.#obey(link);
      return; // it was open before: it had no session to resume
    }
    if (resumed) {
      const { replay, in_flight: inFlight, topics } = result;
      const left = typeof replay === "number" ? replay : 0;
      link.replay = { left, inFlight: texts(inFlight), topics: texts(topics) };
      if (typeof result.session_id === "string") link.hello = { ...link.hello!, session_id: result.session_id };
      this.#open(link, true, undefined);
      if (left <= 0 && this.#link === link) this.#reconcile(link);
    } else {
      this.#open(link, false, String(result.reason ?? "refused"));
      // These were sent before the new session began, and are not counted.
      for (const frame of held) if (this.#link === link) this.#onFrame(link, frame);
    }
    this.#obey(link);
  }

  /** Use a connection, the session of which is resumed (true), lost (false), or new (undefined). */
  #open(link: Link, resumed: boolean | undefined, reason: string | undefined): void {
    if (link === this.#next) {
      const old = this.#link!;
      this.#leave(old);
      // The gateway closes the connection that a session has left.
      after(MOVED_TIMEOUT, () => old.socket.close(GIVEN_UP));
      this.#next = null;
      this.#link = link;
      this.#suspend(new ConnectionLost(BROKEN, "the session could not be moved"));
    }
    if (resumed === undefined) this.#session.end();
    if (!resumed) this.#calls.lost(new ConnectionLost(BROKEN, "the session could not be resumed"));
    if (link.replay === null) clearTimeout(link.timers.connect);
    this.#calls.connected((text) => {
      link.socket.send(text);
      if (!link.isBusy) this.#pulse.watch(link);
    });
    const hello = link.hello!;
    this.#use(link, hello);
    if (link.isHttp && (this.#options.transport ?? "auto") === "auto") this.#move(link, WEBSOCKET_AGAIN);
    this.#setState({ name: "open", hello, resumed, reason });
    if (this.#link !== link || resumed) return;
    this.#subscriptions.connected();
    this.#calls.release();
  }

  #use(link: Link, hello: Hello): void {
    this.#hello = hello;
    this.#calls.limits = {
      maxMessageSize: hello.limits.max_message_size,
      maxInFlight: hello.limits.max_in_flight,
      requestTimeout: hello.limits.request_timeout * 1000,
    };
    this.#planRefresh(link);
    this.#pulse.watch(link);
  }

  /** Go on with a resumed session, once all frames that were missed have been handled. */
  #reconcile(link: Link): void {
    const { inFlight, topics } = link.replay!;
    link.replay = null;
    clearTimeout(link.timers.connect);
    this.#calls.resumed(inFlight);
    this.#subscriptions.resumed(topics);
    this.#calls.release();
  }

  /** Handle the frames of a connection that were held because its session was about to move. */
  #handleHeld(link: Link): void {
    const held = link.held ?? [];
    link.held = null;
    for (const frame of held) if (this.#link === link) this.#handle(link, frame);
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
      const token = await this.#tokens.ask("refresh");
      if (this.#link !== link) return;
      if (typeof token === "string") {
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

  // --- the application ----------------------------------------------------------------------------------------

  #call(kind: "request" | "command" | "describe", payload: object, options: CallOptions, params?: object) {
    const text = params === undefined ? undefined : this.#encoded(params);
    if (this.#state.name === "closed") throw this.#state.error ?? closedByApplication();
    return this.#calls.call(kind, payload, options, text);
  }

  #encoded(params: object): string {
    const { stringify, maxDepth = 32 } = this.#options;
    const text = stringify?.(params);
    // The frame and its payload are levels, too.
    checkParams(text === undefined ? params : (JSON.parse(text) as object), maxDepth - 2);
    return text ?? JSON.stringify(params);
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

function hostOf(url: string): string {
  return /^\w+:\/\/([^/]*)/.exec(url)?.[1] ?? "";
}

function closedByApplication(): ConnectionClosed {
  return new ConnectionClosed(1000, "by the application");
}

/** Outside of browsers a refused handshake has no close code; a refused first frame has one. */
function defaultTokenIn(): "subprotocol" | "frame" {
  return typeof location === "undefined" ? "frame" : "subprotocol";
}

function base64url(token: string): string {
  const bytes = new TextEncoder().encode(token);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
