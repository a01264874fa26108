/** One sign-in: the client, and all state that the page shows. Independent of the page. */
import { connect } from "../client.js";
import { keepCalls, keptCalls } from "./past.js";
import { claimsOf } from "./text.js";

/**
 * @typedef {import("../client.js").Client} Client
 * @typedef {import("../client.js").Description} Description
 * @typedef {import("../client.js").Hello} Hello
 * @typedef {import("../client.js").State} State
 * @typedef {import("../client.js").Subscription} Subscription
 *
 * @typedef {{ number: number, at: Date, out: boolean, kind: string, about: string, text: string, size: number,
 *   quiet: boolean }} Frame
 * @typedef {{ number: number, at: Date, topic: string, event: unknown, traceId: string | null, notice: boolean }} Entry
 * @typedef {{ topic: string, state: "pending" | "active" | "ended", problem: string, count: number }} Wish
 * @typedef {{ code: string, message: string, retryable: boolean, retryAfter: number | null, traceId: string | null }}
 *   Problem
 * @typedef {{ number: number, at: Date, service: string, method: string, kind: "request" | "command",
 *   params: Record<string, unknown>, startedAt: number, ms: number | null, result: unknown, size: number,
 *   problem: Problem | null, isOld: boolean, abort: () => void }} Call
 * @typedef {{ at: number, isOpen: boolean, roundTrip: number | null, call: number | null, rate: number }} Sample
 * @typedef {"refresh" | "expired" | "refused"} Wanted
 * @typedef {{ resumed: boolean, reason: string, replayed: number, inFlight: number, topics: string[] }} Return
 */

const KEPT_FRAMES = 300;
const KEPT_EVENTS = 300;
const KEPT_CALLS = 30;
/** Samples, one for each second. */
const KEPT_SAMPLES = 120;
/** Milliseconds. */
const TICK = 1000;
/** The token goes into the first frame: a subprotocol is too short for long tokens. */
const TOKEN_IN = "frame";
/** The reason of a goodbye that ends one connection, and not the process. */
const LIFETIME = "lifetime";
/** The id of the client's frame `resume`. */
const RESUME = "resume";
/** The close code of a connection that the page cuts. Any code but 1000 leaves the session to be resumed. */
const CUT = 3000;

export class Session {
  /** @type {State} */
  state = { name: "connecting" };
  since = Date.now();
  /** @type {Hello | null} */
  hello = null;
  /** @type {Description | null} */
  description = null;
  describing = false;
  /** @type {string} */
  describeProblem = "";
  /** Topic patterns that the contract allows to subscribe to. @type {string[]} */
  topics = [];
  /** Newest first. @type {Frame[]} */
  frames = [];
  /** @type {Entry[]} */
  events = [];
  /** @type {Call[]} */
  calls = [];
  /** @type {Map<string, Wish>} */
  wishes = new Map();
  /** Oldest first. @type {Sample[]} */
  samples = [];
  /** Why the page asks for another token, or null. @type {Wanted | null} */
  wanted = null;
  /** Why the gateway refused the last token. */
  wantedProblem = "";
  /** Whether the gateway has said goodbye on the connection, which is the last one. */
  isDraining = false;
  /** A token of another user, for which another session has to begin. @type {string | null} */
  successor = null;
  /** Whether the latest answer said that the gateway has no connection to the mesh. */
  meshIsAway = false;
  /** Why the first connection failed. @type {string} */
  failure = "";
  /** Whether the session was resumed on the last connection that is not the first; null before. @type {Return | null} */
  lastReturn = null;

  #listeners = new Set();
  #scheduled = false;
  #token;
  /** @type {Set<string>} */
  #tokens = new Set();
  /** The last token that the gateway has accepted. */
  #accepted = "";
  /** The ids of the frames that replace the token. @type {Set<string>} */
  #replacing = new Set();
  /** The key that resumes the session, good once. */
  #key = "";
  /** The gateway's last answer to `resume`. @type {Record<string, any>} */
  #resumption = {};
  /** @type {Promise<string> | null} */
  #asked = null;
  /** @type {(token: string) => void} */
  #answer = () => {};
  #opened = false;
  #number = 0;
  /** @type {WebSocket | null} */
  #socket = null;
  /** When each call in flight was sent, by id. @type {Map<string, number>} */
  #sent = new Map();
  /** @type {{ number: number, at: number } | null} */
  #probe = null;
  #probesUntil = 0;
  /** @type {number | null} */
  #roundTrip = null;
  /** @type {number[]} */
  #latencies = [];
  #frameCount = 0;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  #timer;
  /** @type {Client} */
  #client;

  /** @param {string | URL} url @param {string} token */
  constructor(url, token) {
    this.#token = token;
    this.#tokens.add(token);
    this.#client = connect(url, {
      getToken: (reason) => this.#getToken(reason),
      tokenIn: TOKEN_IN,
      WebSocket: /** @type {any} */ (watched(this)),
    });
    this.#client.on("state", (state) => this.#onState(state));
    this.#client.on("event", ({ topic, event, traceId }) => this.#note(topic, event, traceId, false));
    this.#client.on("gap", (gap) => this.#note("gap", gap, null, true));
    this.#client.on("dropped", (dropped) => this.#note("dropped", dropped, null, true));
    this.#client.on("unsubscribed", (notice) => this.#note("unsubscribed", notice, null, true));
    this.#client.on("goodbye", (goodbye) => {
      this.isDraining = goodbye.reason !== LIFETIME;
      this.#note("goodbye", goodbye, null, true);
    });
    this.#client.on("warning", (warning) => {
      if (warning.code === "token_refresh") this.#onRefused(warning.cause);
      this.#note("warning", warning.message, null, true);
    });
    this.#timer = setInterval(() => this.#tick(), TICK);
  }

  get token() {
    return this.#token;
  }

  get url() {
    return this.#client.url;
  }

  /** Call `listener` after changes, at most once per frame. Returns a function that removes it. @param {() => void} listener */
  listen(listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Sign out. */
  close() {
    clearInterval(this.#timer);
    this.#listeners.clear();
    this.#client.close();
  }

  /** Remove secrets from a text, so that nobody can read them from the screen or a screenshot. @param {string} text */
  redact(text) {
    for (const token of this.#tokens) if (text.includes(token)) text = text.replaceAll(token, "‹token›");
    return this.#key === "" ? text : text.replaceAll(this.#key, "‹key›");
  }

  /** Cut the connection as a network does that goes away: the session stays, for the client to resume it. */
  cut() {
    this.#socket?.close(CUT);
  }

  // --- the token ----------------------------------------------------------------------------------------------------

  /** Use a newer token of the same user. @param {string} token */
  provide(token) {
    this.#tokens.add(token);
    const other = this.#otherUser(token);
    if (other !== null) {
      this.wantedProblem = `This is a token of ${other}. Sign out first to use it.`;
      this.changed();
      return;
    }
    const isAwaited = this.#asked !== null;
    this.#token = token;
    this.wanted = null;
    this.wantedProblem = "";
    this.#asked = null;
    this.#answer(token);
    // The client asks once only if the gateway says that the token is one of another user.
    if (!isAwaited) this.#client.authorize(token).catch((error) => this.#onRefused(error));
    this.changed();
  }

  /** The user of a token, if it tells of another one than the token that was accepted. @param {string} token */
  #otherUser(token) {
    const [before, now] = [claimsOf(this.#accepted), claimsOf(token)];
    if (before === null || now === null) return null;
    // The claim with the user id is a setting of the gateway.
    const name = Object.keys(before).find((each) => each !== "sub" && before.sub !== this.hello?.user_id && before[each] === this.hello?.user_id) ?? "sub";
    return now[name] === before[name] ? null : `the user ${String(now[name])}`;
  }

  /** The gateway has refused a newer token on the open connection. @param {unknown} cause */
  #onRefused(cause) {
    const { code } = /** @type {{ code?: unknown }} */ (cause ?? {});
    this.wantedProblem = code === "permission_denied" ? "This is a token of another user. Sign out first to use it." : messageOf(cause);
    this.#token = this.#accepted;
    this.wanted ??= "refresh";
    this.changed();
  }

  /** @param {"connect" | "refresh" | "rejected" | "expired"} reason @returns {string | null | Promise<string>} */
  #getToken(reason) {
    if (reason === "refresh") return this.#ask("refresh");
    if (reason === "rejected" || reason === "expired") {
      const isLate = reason === "expired";
      if (this.#opened) return this.#ask(isLate ? "expired" : "refused");
      this.failure = isLate ? "The token has expired." : "The gateway does not accept this token.";
      return null;
    }
    const expiresAt = this.hello?.expires_at ?? null;
    // The time is that of the token that the gateway has accepted; a newer one may be waiting for its connection.
    const isExpired = this.#token === this.#accepted && expiresAt !== null && Date.now() >= expiresAt * 1000;
    return isExpired ? this.#ask("expired") : this.#token;
  }

  /** @param {Wanted} why */
  #ask(why) {
    this.wanted = why;
    this.#asked ??= new Promise((resolve) => (this.#answer = resolve));
    this.changed();
    return this.#asked;
  }

  // --- the connection -----------------------------------------------------------------------------------------------

  /** @param {State} state */
  #onState(state) {
    this.state = state;
    this.since = Date.now();
    this.isDraining = false;
    const expiresAt = this.hello?.expires_at ?? null;
    if (state.name !== "open" && this.wanted === "refresh" && expiresAt !== null && this.since >= expiresAt * 1000) {
      this.wanted = "expired"; // the client still waits for the token that it asked for before
    }
    if (state.name === "open") {
      if (this.hello !== null && this.hello.user_id !== state.hello.user_id) {
        // Nothing of the last user goes on: closed here, the client sends neither waiting calls nor subscriptions.
        this.successor = this.#token;
        this.#client.close();
        return;
      }
      this.hello = state.hello;
      this.#accepted = this.#token;
      if (!this.#opened) this.calls = keptCalls(state.hello.user_id, () => ++this.#number);
      this.#opened = true;
      this.failure = "";
      if (this.wanted !== null && this.wanted !== "refresh") this.wanted = null;
      if (state.resumed !== true) this.#sent.clear();
      if (state.resumed !== undefined) this.#onReturn(state.resumed, state.reason ?? "");
      void this.describe();
    } else if (state.name === "reconnecting" && !this.#opened) {
      this.failure = `${sentence(messageOf(state.error.cause ?? state.error))} Reconnecting.`;
    } else if (state.name === "closed" && !this.#opened) {
      this.failure ||= sentence(messageOf(state.error?.cause ?? state.error));
    }
    if (state.name !== "open") {
      this.#probe = null;
      this.meshIsAway = false;
    }
    this.changed();
  }

  /** @param {boolean} resumed @param {string} reason */
  #onReturn(resumed, reason) {
    const { replay = 0, in_flight = [], topics = [] } = this.#resumption;
    this.lastReturn = { resumed, reason, replayed: replay, inFlight: in_flight.length, topics };
    if (!resumed) this.lastReturn = { resumed, reason, replayed: 0, inFlight: 0, topics: [] };
    this.#note("session", this.lastReturn, null, true);
  }

  /** Stop showing how the last connection came about. */
  forgetReturn() {
    this.lastReturn = null;
    this.changed();
  }

  get hasOpened() {
    return this.#opened;
  }

  /** @param {WebSocket} socket */
  onSocket(socket) {
    this.#socket = socket;
    this.#keep(true, "connect", socket.url, "", false);
    socket.addEventListener("close", ({ code, reason }) => {
      if (this.#socket === socket) this.#socket = null;
      this.#keep(false, "close", reason ? `${code} ${reason}` : `${code}`, "", false);
    });
  }

  /** @param {boolean} out @param {unknown} data */
  onFrame(out, data) {
    const text = String(data);
    const frame = parse(text);
    const payload = isObject(frame?.payload) ? frame.payload : {};
    const kind = typeof frame?.type === "string" ? frame.type : "?";
    const id = typeof payload.id === "string" ? payload.id : "";
    const quiet = kind === "ping" || kind === "pong" || kind === "ack";
    if (!out && kind === "response" && id === RESUME && isObject(payload.result)) {
      this.#resumption = payload.result;
      this.#key = typeof payload.result.key === "string" ? payload.result.key : "";
    }
    if (!quiet) this.#frameCount++;
    if (out && (kind === "request" || kind === "command")) this.#sent.set(id, performance.now());
    if (out && kind === "authorize") this.#replacing.add(id);
    if (!out && kind === "response" && this.#replacing.delete(id)) this.#onReplaced(payload.result);
    if (!out && kind === "response") this.#onResponse(id, payload.error);
    if (!out && kind === "error" && frame?.code === "too_many_requests") this.#probesUntil = performance.now() + 60_000;
    if (!out && kind === "pong" && this.#probe !== null && payload.probe === this.#probe.number) {
      this.#roundTrip = performance.now() - this.#probe.at;
      this.#probe = null;
    }
    this.#keep(out, kind, about(kind, payload, frame), this.redact(text), quiet, text.length);
  }

  /** @param {string} id @param {unknown} error */
  #onResponse(id, error) {
    const at = this.#sent.get(id);
    if (at === undefined) return;
    this.#sent.delete(id);
    this.#latencies.push(performance.now() - at);
    this.meshIsAway = isObject(error) && error.code === "mesh_unavailable";
  }

  /** The gateway has accepted a newer token on the open connection. @param {unknown} result */
  #onReplaced(result) {
    if (this.hello === null || !this.#opened || !isObject(result)) return;
    this.hello = { ...this.hello, expires_at: typeof result.expires_at === "number" ? result.expires_at : null };
    this.#accepted = this.#token;
  }

  /**
   * @param {boolean} out @param {string} kind @param {string} about @param {string} text @param {boolean} quiet
   * @param {number} [size]
   */
  #keep(out, kind, about, text, quiet, size = text.length) {
    const number = ++this.#number;
    this.frames = [{ number, at: new Date(), out, kind, about, text, size, quiet }, ...this.frames].slice(0, KEPT_FRAMES);
    this.changed();
  }

  clearFrames() {
    this.frames = [];
    this.changed();
  }

  // --- methods ------------------------------------------------------------------------------------------------------

  async describe() {
    if (this.describing) return;
    this.describing = true;
    this.changed();
    try {
      this.description = await this.#client.describe();
      this.describeProblem = "";
    } catch (error) {
      this.describeProblem = messageOf(error);
    }
    this.describing = false;
    this.changed();
    const contract = await this.contract("asyncapi").catch(() => null);
    if (contract === null) return;
    const operations = /** @type {any[]} */ (Object.values(JSON.parse(contract).operations ?? {}));
    this.topics = operations.map((each) => each["x-nuropb"]?.topic).filter((topic) => typeof topic === "string");
    this.changed();
  }

  /** Fetch the contract document. @param {"asyncapi" | "openapi"} kind */
  async contract(kind) {
    const url = new URL(`../${kind}.json`, import.meta.url);
    const response = await fetch(url, { headers: { Authorization: `Bearer ${this.#token}` }, cache: "no-cache" });
    if (response.status === 404) throw new Error(`This gateway does not serve ${kind}.json.`);
    if (!response.ok) throw new Error(`The gateway answered with status ${response.status}.`);
    return response.text();
  }

  // --- calls --------------------------------------------------------------------------------------------------------

  /**
   * @param {"request" | "command"} kind @param {string} service @param {string} method
   * @param {Record<string, unknown>} params @param {number | undefined} timeout
   * @returns {Call}
   */
  call(kind, service, method, params, timeout) {
    const controller = new AbortController();
    /** @type {Call} */
    const call = {
      number: ++this.#number,
      at: new Date(),
      service,
      method,
      kind,
      params,
      startedAt: performance.now(),
      ms: null,
      result: undefined,
      size: 0,
      problem: null,
      isOld: false,
      abort: () => controller.abort(new Error("Cancelled. The service may still run the call.")),
    };
    this.calls = [call, ...this.calls].slice(0, KEPT_CALLS);
    const options = { timeout, signal: controller.signal };
    const answer =
      kind === "request"
        ? this.#client.request(service, method, params, options)
        : this.#client.command(service, method, params, options);
    answer.then(
      (result) => this.#end(call, result, null),
      (error) => this.#end(call, undefined, error),
    );
    this.changed();
    return call;
  }

  /** @param {Call} call @param {unknown} result @param {any} error */
  #end(call, result, error) {
    call.ms = performance.now() - call.startedAt;
    call.result = result;
    call.size = result === undefined ? 0 : JSON.stringify(result).length;
    if (error !== null) {
      call.problem = {
        code: error.code && typeof error.code === "string" ? error.code : "cancelled",
        message: messageOf(error),
        retryable: error.retryable === true,
        retryAfter: error.retryAfter ?? null,
        traceId: error.traceId ?? null,
      };
    }
    this.calls = [...this.calls];
    if (this.hello !== null) keepCalls(this.hello.user_id, this.calls, (text) => this.redact(text) !== text);
    this.changed();
  }

  // --- events -------------------------------------------------------------------------------------------------------

  /** @param {string} topic */
  subscribe(topic) {
    if (this.#subscriptions.has(topic)) return;
    /** @type {Wish} */
    const wish = { topic, state: "pending", problem: "", count: 0 };
    this.wishes.set(topic, wish);
    /** @type {Subscription} */
    let subscription;
    try {
      subscription = this.#client.subscribe(topic, () => {
        wish.count++;
        this.changed();
      });
    } catch (error) {
      wish.state = "ended";
      wish.problem = messageOf(error);
      this.changed();
      return;
    }
    this.#subscriptions.set(topic, subscription);
    subscription.on("ended", (error) => {
      this.#subscriptions.delete(topic);
      wish.state = "ended";
      wish.problem = error === null ? "" : messageOf(error);
      if (error === null) this.wishes.delete(topic);
      this.changed();
    });
    subscription.ready.then(
      () => {
        wish.state = "active";
        this.changed();
      },
      () => {}, // `ended` says why
    );
    this.changed();
  }

  /** @param {string} topic */
  unsubscribe(topic) {
    this.#subscriptions.get(topic)?.unsubscribe();
    this.wishes.delete(topic);
    this.changed();
  }

  /** @param {string} topic @param {unknown} event @param {string | null} traceId @param {boolean} notice */
  #note(topic, event, traceId, notice) {
    const entry = { number: ++this.#number, at: new Date(), topic, event, traceId, notice };
    this.events = [entry, ...this.events].slice(0, KEPT_EVENTS);
    this.changed();
  }

  clearEvents() {
    this.events = [];
    this.changed();
  }

  // --- time ---------------------------------------------------------------------------------------------------------

  /** Once a second: turn the measurements into a sample, and ping the gateway. */
  #tick() {
    const call = this.#latencies.length === 0 ? null : Math.max(...this.#latencies);
    const isOpen = this.state.name === "open";
    const sample = { at: Date.now() / 1000, isOpen, roundTrip: this.#roundTrip, call, rate: this.#frameCount / (TICK / 1000) };
    this.samples = [...this.samples, sample].slice(-KEPT_SAMPLES);
    this.#latencies = [];
    this.#frameCount = 0;
    this.#roundTrip = null;
    const socket = this.#socket;
    const now = performance.now();
    if (isOpen && socket?.readyState === 1 && this.#probe === null && now >= this.#probesUntil) {
      this.#probe = { number: ++this.#number, at: now };
      socket.send(`{"type":"ping","payload":{"probe":${this.#probe.number}}}`);
    }
    this.changed();
  }

  changed() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      for (const listener of [...this.#listeners]) listener();
    });
  }
}

/** A WebSocket class that reports its frames to the session. @param {Session} session */
function watched(session) {
  return class extends WebSocket {
    /** @param {string} url @param {string[]} protocols */
    constructor(url, protocols) {
      super(url, protocols);
      session.onSocket(this);
      this.addEventListener("message", ({ data }) => session.onFrame(false, data));
    }

    /** @override @param {string} text */
    send(text) {
      session.onFrame(true, text);
      super.send(text);
    }
  };
}

/** Summarise a frame in a few words. @param {string} kind @param {Record<string, any>} payload @param {any} frame */
function about(kind, payload, frame) {
  if (kind === "request" || kind === "command") return `${payload.service}.${payload.method}`;
  if (kind === "response") return isObject(payload.error) ? String(payload.error.code) : "ok";
  if (kind === "event") return String(payload.topic);
  if (kind === "subscribe" || kind === "unsubscribe") return (payload.topics ?? []).join(", ");
  if (kind === "describe") return payload.service ?? "all services";
  if (kind === "error") return String(frame?.code ?? "");
  return "";
}

/** @param {string} text @returns {Record<string, any> | null} */
function parse(text) {
  try {
    const frame = JSON.parse(text);
    return isObject(frame) ? frame : null;
  } catch {
    return null;
  }
}

/** @param {unknown} value @returns {value is Record<string, any>} */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {unknown} error */
export function messageOf(error) {
  return error instanceof Error ? error.message : String(error ?? "");
}

/** @param {string} text */
function sentence(text) {
  const trimmed = text.trim();
  return trimmed === "" ? "" : `${trimmed[0]?.toUpperCase()}${trimmed.slice(1)}${/[.!?]$/.test(trimmed) ? "" : "."}`;
}
