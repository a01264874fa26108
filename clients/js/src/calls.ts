import { type Backoff, after, jittered } from "./backoff.js";
import { checkIds } from "./checks.js";
import {
  CallTimeout,
  type ErrorPayload,
  type GatewayError,
  PayloadTooLarge,
  TooManyRequests,
  UnexpectedFrame,
  callFailed,
} from "./errors.js";
import { isObject } from "./objects.js";
import { randomKey } from "./random.js";
import type { TraceContext } from "./types.js";

/** Options of a call. */
export interface CallOptions {
  /**
   * Milliseconds from now until the call fails with `CallTimeout`, including the wait for a connection. The default is
   * the gateway's (mostly 30 s). The gateway reduces it to its maximum.
   */
  timeout?: number | undefined;
  /** Aborting it cancels the call, which fails with the signal's reason. */
  signal?: AbortSignal | undefined;
  /**
   * The call may run twice without harm, so it is repeated when the connection is lost. It carries an idempotency key,
   * by which gateway and service recognise a repetition.
   */
  idempotent?: boolean | undefined;
  /** The idempotency key of the call (1 to 64 printable ASCII characters), instead of a random one. */
  idempotencyKey?: string | undefined;
  /** How often a `retryable` failure is repeated. */
  retries?: number | undefined;
  /** Trace id for the logs of gateway and service; by default the gateway generates one. */
  traceId?: string | undefined;
  /** The span that the call belongs to, instead of the one that the client's option `trace` returns. */
  trace?: TraceContext | undefined;
}

export interface CallSettings {
  backoff: Backoff;
  /** Milliseconds after a deadline in which the gateway's own timeout error is expected. */
  grace: number;
  /** Maximum number of calls that wait to be sent. */
  maxQueue: number;
  trace?: (() => TraceContext | undefined) | undefined;
}

/** The limits of a gateway, from its hello. */
export interface CallLimits {
  maxMessageSize: number;
  maxInFlight: number;
  /** Milliseconds. */
  requestTimeout: number;
}

export const LIMITS: CallLimits = { maxMessageSize: 65536, maxInFlight: 64, requestTimeout: 30_000 };

type Kind = "request" | "command" | "describe";
type ControlKind = "subscribe" | "unsubscribe" | "authorize";

interface Call {
  kind: Kind | ControlKind;
  /** The id in its answer; empty before it is sent. */
  id: string;
  /** The members of the payload as JSON, each after a comma, without `id` and `timeout`. */
  members: string;
  idempotent: boolean;
  /** By the clock of performance.now(), in milliseconds. */
  deadline: number;
  sentAt: number;
  retries: number;
  attempt: number;
  /** Whether the caller stopped waiting. The gateway may still be working on the call. */
  abandoned: boolean;
  timer: ReturnType<typeof setTimeout> | undefined;
  pause: ReturnType<typeof setTimeout> | undefined;
  resolve: (result: unknown) => void;
  reject: (error: unknown) => void;
}

const encoder = new TextEncoder();

/** The members of a trace context, without any others; undefined without one. */
function contextOf(trace: TraceContext | undefined): TraceContext | undefined {
  const { traceparent, tracestate, baggage } = trace ?? {};
  return traceparent === undefined ? undefined : { traceparent, tracestate, baggage };
}

/** Calls that wait to be sent, calls in flight, and requests to the gateway itself. */
export class Calls {
  limits: CallLimits = LIMITS;
  /** Why there is no connection, as the end of a sentence; empty while calls can be sent. */
  reason = "";
  readonly #settings: CallSettings;
  /** In the order of sending. */
  #waiting = new Set<Call>();
  readonly #inFlight = new Map<string, Call>();
  /** Calls that failed, and pause before they are repeated. */
  readonly #pausing = new Set<Call>();
  #lastId = 0;
  /** Number of calls in flight that the gateway counts. */
  #weight = 0;
  #send: ((text: string) => void) | null = null;
  #held = true;
  /** The loss of a connection whose session may still be resumed; null while there is none. */
  #loss: GatewayError | null = null;
  /** Ids up to this one are those of an earlier page, whose session this one has taken. */
  #firstId = 0;

  constructor(settings: CallSettings) {
    this.#settings = settings;
  }

  /**
   * Make a call, now or as soon as the gateway accepts one more. `payload` has the members of its kind, without `params`,
   * which are JSON.
   */
  call(kind: Kind, payload: object, options: CallOptions = {}, params?: string): Promise<unknown> {
    const { timeout, signal, idempotent, retries, traceId } = options;
    const key = options.idempotencyKey ?? (idempotent === true && kind !== "describe" ? randomKey() : undefined);
    if (timeout !== undefined && !(timeout > 0 && Number.isFinite(timeout))) {
      throw new RangeError("timeout must be a number of milliseconds greater than 0");
    }
    checkIds(traceId, options.idempotencyKey);
    if (signal?.aborted) return Promise.reject(reasonOf(signal));
    if (this.#waiting.size >= this.#settings.maxQueue) {
      const description = `${this.#settings.maxQueue} calls are already waiting to be sent; wait for an answer first`;
      return Promise.reject(new TooManyRequests({ code: "too_many_requests", description, retryable: true }));
    }
    const trace = options.trace ?? this.#settings.trace?.();
    const rest = membersOf({ ...payload, trace_id: traceId, idempotency_key: key, trace: contextOf(trace) });
    const members = params === undefined ? rest : `${rest},"params":${params}`;
    const deadline = performance.now() + (timeout ?? this.limits.requestTimeout);
    const { promise, call } = makeCall(kind, members, deadline);
    call.idempotent = idempotent === true || kind === "describe";
    call.retries = retries ?? 0;
    call.timer = after(deadline - performance.now(), () => this.#expire(call));
    if (signal) {
      const abort = () => this.#abandon(call, reasonOf(signal));
      signal.addEventListener("abort", abort, { once: true });
      const stop = () => signal.removeEventListener("abort", abort);
      promise.then(stop, stop);
    }
    this.#waiting.add(call);
    this.#flush();
    return promise;
  }

  /**
   * Send a request to the gateway itself, at once and on this connection. `answered` is called with the result before
   * the next frame is read; the promise may be resolved later.
   */
  ask(
    kind: ControlKind,
    payload: Record<string, unknown>,
    answered?: (result: unknown) => void,
  ): Promise<unknown> {
    const { promise, call } = makeCall(kind, membersOf(payload), performance.now() + this.limits.requestTimeout);
    if (answered !== undefined) {
      const { resolve } = call;
      call.resolve = (result) => {
        answered(result);
        resolve(result);
      };
    }
    this.#transmit(call);
    return promise;
  }

  /** Use a new connection: `ask` may send, calls wait for `release`. */
  connected(send: (text: string) => void): void {
    this.#send = send;
    this.#held = true;
  }

  /** Send calls from now on. */
  release(): void {
    this.reason = "";
    this.#held = false;
    this.#flush();
  }

  /** Send no more calls. Calls in flight are still answered. */
  hold(): void {
    this.#held = true;
  }

  /** The id of the last call; the next page goes on behind it. */
  get lastId(): number {
    return this.#lastId;
  }

  /** Go on behind the ids of an earlier page, whose session this one takes. */
  restore(lastId: number): void {
    this.#firstId = this.#lastId = lastId;
  }

  /** The time, by the clock of performance.now(), since which the first call waits for its answer; else Infinity. */
  get waitingSince(): number {
    for (const call of this.#inFlight.values()) if (!call.abandoned) return call.sentAt;
    return Infinity;
  }

  /** Complete a call with the payload of a response. Returns a warning if the payload fits no call. */
  answer(payload: Record<string, unknown>): UnexpectedFrame | null {
    const call = typeof payload.id === "string" ? this.#inFlight.get(payload.id) : undefined;
    if (call === undefined) {
      if (Number(payload.id) <= this.#firstId) return null; // of an earlier page
      return new UnexpectedFrame("the gateway sent a response to no call in flight");
    }
    this.#land(payload.id as string, call);
    let unexpected: UnexpectedFrame | null = null;
    if (call.abandoned) {
      clearTimeout(call.timer);
    } else if (isObject(payload.error)) {
      this.#failed(call, payload.error, typeof payload.trace_id === "string" ? payload.trace_id : null);
    } else if ((payload.error === null || payload.error === undefined) && "result" in payload) {
      this.#settle(call);
      call.resolve(payload.result);
    } else {
      this.#settle(call);
      call.reject((unexpected = new UnexpectedFrame("the gateway sent a response with neither result nor error")));
    }
    this.#flush();
    return unexpected;
  }

  /**
   * Note the end of the connection, whose session may be resumed: calls in flight go on until `resumed` or `lost` is
   * called. Requests to the gateway itself fail, as they are made anew.
   */
  suspend(error: GatewayError): void {
    this.#send = null;
    this.#held = true;
    this.#loss ??= error;
    for (const call of this.#inFlight.values()) {
      if (isControl(call)) this.#reject(call, error);
      if (isControl(call)) call.abandoned = true;
      if (call.abandoned) clearTimeout(call.timer);
    }
  }

  /**
   * Go on with a resumed session, in which the gateway has the calls with the ids `known` in flight. Other calls
   * without an answer have not reached it, and are sent again after `release`.
   */
  resumed(known: Iterable<string>): void {
    this.#loss = null;
    const ids = new Set(known);
    const again: Call[] = [];
    for (const [id, call] of this.#inFlight) {
      if (!ids.has(id)) {
        this.#land(id, call);
        if (!call.abandoned) again.push(call);
      } else if (call.abandoned) {
        this.#forget(call);
      }
    }
    // Nobody waits for these: their callers gave up while the client was away, or are of an earlier page.
    for (const id of ids) if (this.#inFlight.get(id)?.abandoned !== false) this.#cancel(id);
    this.#again(again);
  }

  /**
   * Note the end of the session: calls in flight fail with `error`, or with the loss of their connection if it came
   * earlier. If `repeats`, idempotent calls wait for the next connection instead.
   */
  lost(error: GatewayError, repeats = true): void {
    this.#send = null;
    this.#held = true;
    const again: Call[] = [];
    for (const [id, call] of this.#inFlight) {
      this.#land(id, call);
      if (call.abandoned) clearTimeout(call.timer);
      else if (call.idempotent && repeats) again.push(call);
      else this.#reject(call, this.#loss ?? error);
    }
    this.#loss = null;
    this.#again(again);
  }

  /** End all calls with `error`. */
  close(error: GatewayError): void {
    this.lost(error);
    for (const call of [...this.#waiting, ...this.#pausing]) this.#reject(call, error);
    this.#waiting.clear();
    this.#pausing.clear();
  }

  /** Send calls again, before all that wait. */
  #again(calls: Call[]): void {
    if (calls.length > 0) this.#waiting = new Set([...calls, ...this.#waiting]);
    for (const call of calls) this.#arm(call, call.deadline);
  }

  #flush(): void {
    for (const call of this.#waiting) {
      if (this.#held || this.#weight >= this.limits.maxInFlight) return;
      this.#waiting.delete(call);
      this.#transmit(call);
    }
  }

  #transmit(call: Call): void {
    const id = (call.id = String(++this.#lastId));
    let text = `{"type":"${call.kind}","payload":{"id":"${id}"${call.members}`;
    if (call.kind === "request") {
      // At least a millisecond: the gateway refuses a frame without any time.
      text += `,"timeout":${Math.max(1, Math.round(call.deadline - performance.now())) / 1000}`;
    }
    text += "}}";
    if (this.#isTooBig(text)) {
      // The gateway would close the connection for good.
      const description = `the frame exceeds the gateway's limit of ${this.limits.maxMessageSize} bytes`;
      this.#reject(call, new PayloadTooLarge({ code: "payload_too_large", description }));
      return;
    }
    this.#inFlight.set(id, call);
    this.#weight += weight(call);
    call.sentAt = performance.now();
    this.#arm(call, call.deadline + this.#settings.grace);
    this.#send?.(text);
  }

  #isTooBig(text: string): boolean {
    const size = this.limits.maxMessageSize;
    // A UTF-16 unit has at most three bytes in UTF-8, so short texts need not be encoded to be measured.
    return text.length > size || (text.length * 3 > size && encoder.encode(text).length > size);
  }

  #land(id: string, call: Call): void {
    this.#inFlight.delete(id);
    this.#weight -= weight(call);
  }

  #arm(call: Call, moment: number): void {
    clearTimeout(call.timer);
    call.timer = after(moment - performance.now(), () => this.#expire(call));
  }

  #settle(call: Call): void {
    clearTimeout(call.timer);
    clearTimeout(call.pause);
  }

  #reject(call: Call, error: unknown): void {
    this.#settle(call);
    call.reject(error);
  }

  #failed(call: Call, error: ErrorPayload, traceId: string | null): void {
    const failure = callFailed(error, traceId);
    const wait = Math.max(failure.retryAfter ?? 0, jittered(this.#settings.backoff, call.attempt));
    if (!failure.retryable || call.attempt >= call.retries || performance.now() + wait >= call.deadline) {
      this.#reject(call, failure);
      return;
    }
    call.attempt++;
    this.#arm(call, call.deadline);
    this.#pausing.add(call);
    call.pause = after(wait, () => {
      this.#pausing.delete(call);
      this.#waiting.add(call);
      this.#flush();
    });
  }

  #expire(call: Call): void {
    const sent = !this.#waiting.has(call) && !this.#pausing.has(call);
    const description = sent
      ? "No answer in time; whether it ran is unknown"
      : `The call could not be sent in time${this.reason}`;
    this.#abandon(call, new CallTimeout({ code: "timeout", description, retryable: !sent }));
  }

  /** Stop waiting for a call, and cancel it at the gateway. */
  #abandon(call: Call, reason: unknown): void {
    if (this.#waiting.delete(call) || this.#pausing.delete(call)) {
      this.#reject(call, reason);
      return;
    }
    call.abandoned = true;
    call.reject(reason);
    clearTimeout(call.timer);
    if (this.#loss !== null) return; // cancelled when the session is resumed
    this.#forget(call);
    if (call.kind === "request") this.#cancel(call.id);
  }

  /** Count an abandoned call until it is answered, as the gateway does, but not for ever. */
  #forget(call: Call): void {
    const { id } = call;
    clearTimeout(call.timer);
    call.timer = after(this.#settings.grace, () => {
      if (this.#inFlight.get(id) === call) {
        this.#land(id, call);
        this.#flush();
      }
    });
  }

  #cancel(id: string): void {
    this.#send?.(`{"type":"cancel","payload":{"id":"${id}"}}`);
  }
}

/** Whether a call is a request to the gateway itself. */
function isControl({ kind }: Call): boolean {
  return kind === "subscribe" || kind === "unsubscribe" || kind === "authorize";
}

/** The reason of an aborted signal; React Native's signals have none. */
function reasonOf(signal: AbortSignal): unknown {
  if (signal.reason !== undefined) return signal.reason;
  return Object.assign(new Error("the call was aborted"), { name: "AbortError" });
}

/** The number that a call counts against the gateway's limit, which is for calls of services. */
function weight(call: Call): number {
  return call.kind === "request" || call.kind === "command" ? 1 : 0;
}

function makeCall(kind: Kind | ControlKind, members: string, deadline: number): { promise: Promise<unknown>; call: Call } {
  let resolve!: (result: unknown) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<unknown>((resolve_, reject_) => {
    resolve = resolve_;
    reject = reject_;
  });
  const call: Call = {
    kind,
    id: "",
    members,
    idempotent: false,
    deadline,
    sentAt: 0,
    retries: 0,
    attempt: 0,
    abandoned: false,
    timer: undefined,
    pause: undefined,
    resolve,
    reject,
  };
  return { promise, call };
}

/** Encode the members of an object as JSON, each after a comma. Throws TypeError for values that JSON lacks. */
function membersOf(payload: object): string {
  const text = JSON.stringify(payload).slice(1, -1);
  return text && `,${text}`;
}
