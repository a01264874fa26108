import { type Backoff, after, jittered } from "./backoff.js";
import {
  CallTimeout,
  type ErrorPayload,
  type GatewayError,
  PayloadTooLarge,
  TooManyRequests,
  UnexpectedFrame,
  callFailed,
} from "./errors.js";

/** How a call is to be made. */
export interface CallOptions {
  /**
   * Milliseconds until the call fails with `CallTimeout`, counted from now, waiting for a connection included. The
   * gateway's own default (mostly 30 s) if it is missing; more than the gateway's maximum is cut down to that.
   */
  timeout?: number | undefined;
  /** When it is aborted, the call is cancelled and fails with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** The call may run twice without harm, so it is made again when the connection is lost. */
  idempotent?: boolean | undefined;
  /** How often a call that failed as `retryable` is made again. */
  retries?: number | undefined;
  /** What to look for in the logs of gateway and services; the gateway makes one if it is missing. */
  traceId?: string | undefined;
}

export interface CallSettings {
  backoff: Backoff;
  /** Milliseconds for the gateway's own timeout to arrive, before the client gives up by itself. */
  grace: number;
  /** How many calls may wait to be sent. */
  maxQueue: number;
}

/** What the gateway allows: from its hello. */
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
  /** What its answer will name; empty as long as it was not sent. */
  id: string;
  /** The payload's members as JSON, without `id` and `timeout`. */
  members: string;
  idempotent: boolean;
  /** On the clock of performance.now(), in milliseconds. */
  deadline: number;
  retries: number;
  attempt: number;
  /** Nobody waits for the answer any more, but the gateway may still be busy with it. */
  abandoned: boolean;
  timer: ReturnType<typeof setTimeout> | undefined;
  pause: ReturnType<typeof setTimeout> | undefined;
  resolve: (result: unknown) => void;
  reject: (error: unknown) => void;
}

const encoder = new TextEncoder();

/** The calls that wait to be sent, the calls in flight, and the frames that ask something of the gateway itself. */
export class Calls {
  limits: CallLimits = LIMITS;
  readonly #settings: CallSettings;
  /** In the order in which they will be sent. */
  #waiting = new Set<Call>();
  readonly #inFlight = new Map<string, Call>();
  /** Those that wait before they are made again. */
  readonly #pausing = new Set<Call>();
  #lastId = 0;
  /** Calls in flight that the gateway counts. */
  #weight = 0;
  #send: ((text: string) => void) | null = null;
  #held = true;

  constructor(settings: CallSettings) {
    this.#settings = settings;
  }

  /** Make a call, now or as soon as there is room. `payload` has what belongs to its kind. */
  call(kind: Kind, payload: Record<string, unknown>, options: CallOptions = {}): Promise<unknown> {
    const { timeout, signal, idempotent, retries, traceId } = options;
    if (timeout !== undefined && !(timeout > 0 && Number.isFinite(timeout))) {
      throw new RangeError("timeout must be a number of milliseconds greater than 0");
    }
    if (signal?.aborted) return Promise.reject(signal.reason as unknown);
    if (this.#waiting.size >= this.#settings.maxQueue) {
      const description = `${this.#settings.maxQueue} calls wait to be sent; wait for an answer first`;
      return Promise.reject(new TooManyRequests({ code: "too_many_requests", description, retryable: true }));
    }
    const members = membersOf({ ...payload, trace_id: traceId });
    const deadline = performance.now() + (timeout ?? this.limits.requestTimeout);
    const { promise, call } = makeCall(kind, members, deadline);
    call.idempotent = idempotent === true || kind === "describe";
    call.retries = retries ?? 0;
    call.timer = after(deadline - performance.now(), () => this.#expire(call));
    if (signal) {
      const abort = () => this.#abandon(call, signal.reason);
      signal.addEventListener("abort", abort, { once: true });
      const stop = () => signal.removeEventListener("abort", abort);
      promise.then(stop, stop);
    }
    this.#waiting.add(call);
    this.#flush();
    return promise;
  }

  /** Ask something of the gateway itself, on this connection and at once; it is not a call, and has no deadline. */
  ask(kind: ControlKind, payload: Record<string, unknown>): Promise<unknown> {
    const { promise, call } = makeCall(kind, membersOf(payload), Infinity);
    this.#transmit(call);
    return promise;
  }

  /** There is a connection: what `ask` says may be sent. */
  connected(send: (text: string) => void): void {
    this.#send = send;
    this.#held = true;
  }

  /** Calls may be sent. */
  release(): void {
    this.#held = false;
    this.#flush();
  }

  /** Calls may be sent no longer, but those in flight will be answered. */
  hold(): void {
    this.#held = true;
  }

  get inFlight(): number {
    return this.#inFlight.size;
  }

  /** Take the payload of a response; why it is of no use, if it is of none. */
  answer(payload: Record<string, unknown>): UnexpectedFrame | null {
    const call = typeof payload.id === "string" ? this.#inFlight.get(payload.id) : undefined;
    if (call === undefined) return new UnexpectedFrame("a response to nothing that is in flight");
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
      call.reject((unexpected = new UnexpectedFrame("a response with neither result nor error")));
    }
    this.#flush();
    return unexpected;
  }

  /** The connection has gone, and with it the answers. What may run twice is made again on the next one. */
  lost(error: GatewayError): void {
    this.#send = null;
    this.#held = true;
    const again: Call[] = [];
    for (const [id, call] of this.#inFlight) {
      this.#land(id, call);
      if (call.abandoned) clearTimeout(call.timer);
      else if (call.idempotent) again.push(call);
      else this.#reject(call, error);
    }
    if (again.length > 0) this.#waiting = new Set([...again, ...this.#waiting]);
    for (const call of again) this.#arm(call, call.deadline);
  }

  /** There will be no connection any more. */
  close(error: GatewayError): void {
    this.lost(error);
    for (const call of [...this.#waiting, ...this.#pausing]) this.#reject(call, error);
    this.#waiting.clear();
    this.#pausing.clear();
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
      // The gateway would hang up for good.
      const description = `the frame has more than the ${this.limits.maxMessageSize} bytes that the gateway takes`;
      this.#reject(call, new PayloadTooLarge({ code: "payload_too_large", description }));
      return;
    }
    this.#inFlight.set(id, call);
    this.#weight += weight(call);
    if (call.deadline < Infinity) this.#arm(call, call.deadline + this.#settings.grace);
    this.#send?.(text);
  }

  #isTooBig(text: string): boolean {
    const size = this.limits.maxMessageSize;
    // Three bytes of UTF-8 to a UTF-16 unit at the most, so short texts need not be encoded to be measured.
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
    const description = sent ? "No answer in time; whether it ran is unknown" : "It could not be sent in time";
    this.#abandon(call, new CallTimeout({ code: "timeout", description, retryable: !sent }));
  }

  /** Nobody waits for it any more. */
  #abandon(call: Call, reason: unknown): void {
    if (this.#waiting.delete(call) || this.#pausing.delete(call)) {
      this.#reject(call, reason);
      return;
    }
    const { id } = call;
    call.abandoned = true;
    call.reject(reason);
    // The gateway counts it until it has answered, and so does the client; but not for ever.
    clearTimeout(call.timer);
    call.timer = after(this.#settings.grace, () => {
      if (this.#inFlight.get(id) === call) {
        this.#land(id, call);
        this.#flush();
      }
    });
    if (call.kind === "request") this.#send?.(`{"type":"cancel","payload":{"id":"${id}"}}`);
  }
}

/** The gateway's limit is for calls of services. */
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

/** The members of an object as JSON, each with a comma in front. Throws TypeError for what is no JSON. */
function membersOf(payload: Record<string, unknown>): string {
  const text = JSON.stringify(payload).slice(1, -1);
  return text && `,${text}`;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
