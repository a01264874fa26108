/**
 * The errors of a client, one class and code for each kind.
 *
 *     GatewayError
 *     ├── CallFailed            a call was answered by an error: one class for each code
 *     ├── ConnectionLost        the connection broke during a call; whether it ran is unknown
 *     ├── ConnectionClosed      the client is closed, by the application or for good by the gateway
 *     ├── Unsubscribed          the gateway has ended a subscription
 *     ├── TokenRefreshFailed    no newer token, or it was refused (a warning, never thrown)
 *     └── UnexpectedFrame       the gateway sent a frame that the protocol does not define
 */

/** The error of a response, or an error frame, from the gateway. */
export interface ErrorPayload {
  code?: unknown;
  description?: unknown;
  error?: unknown;
  retryable?: unknown;
  retry_after_ms?: unknown;
}

/** The base class of all errors of this client, except for invalid arguments (TypeError, RangeError). */
export class GatewayError extends Error {
  /** For programs: a code of the protocol, or one of this client. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** A call that ended with an error. Codes without a class of their own are thrown as this class. */
export class CallFailed extends GatewayError {
  /** Whether the call was not delivered, so that it may be repeated without harm. */
  readonly retryable: boolean;
  /** Milliseconds to wait before repeating the call; null if the gateway names no time. */
  readonly retryAfter: number | null;
  /** The trace id of the call in the logs of gateway and service. */
  readonly traceId: string | null;
  /** The name of NuroPb's class for this error. */
  readonly error: string;

  constructor(error: ErrorPayload, traceId: string | null = null) {
    const code = codeOf(error);
    super(code, typeof error.description === "string" ? error.description : code);
    this.retryable = error.retryable === true;
    this.retryAfter = milliseconds(error.retry_after_ms);
    this.traceId = traceId;
    this.error = typeof error.error === "string" ? error.error : "";
  }
}

/** An invalid frame, for example with an invalid name of a service, method or topic. */
export class BadRequest extends CallFailed {}
/** Parameters that the service does not accept. */
export class InvalidParams extends CallFailed {}
/** An invalid token, or one that the service does not accept. */
export class Unauthenticated extends CallFailed {}
/** A call that the gateway's policy or the service does not allow. */
export class PermissionDenied extends CallFailed {}
/** A method that the service does not have. */
export class MethodNotFound extends CallFailed {}
/** An id that is already in flight. */
export class DuplicateId extends CallFailed {}
/** A service that does not exist, or does not answer at the moment. */
export class ServiceUnavailable extends CallFailed {}
/** A gateway without a connection to the mesh. */
export class MeshUnavailable extends CallFailed {}
/** A call without an answer in time. Unless it is retryable, whether the call ran is unknown. */
export class CallTimeout extends CallFailed {}
/** A call that was cancelled, but not by this client. */
export class Cancelled extends CallFailed {}
/** Too many calls in flight, waiting, or failing. */
export class TooManyRequests extends CallFailed {}
/** Parameters or a result larger than a limit. */
export class PayloadTooLarge extends CallFailed {}
/** A deprecated method: the service names another one to call. */
export class Deprecated extends CallFailed {}
/** An error in the service. */
export class ServiceError extends CallFailed {}
/** An error in the gateway. */
export class InternalError extends CallFailed {}

const CLASSES: Readonly<Record<string, typeof CallFailed>> = {
  bad_request: BadRequest,
  invalid_params: InvalidParams,
  unauthenticated: Unauthenticated,
  permission_denied: PermissionDenied,
  method_not_found: MethodNotFound,
  duplicate_id: DuplicateId,
  service_unavailable: ServiceUnavailable,
  mesh_unavailable: MeshUnavailable,
  timeout: CallTimeout,
  cancelled: Cancelled,
  too_many_requests: TooManyRequests,
  payload_too_large: PayloadTooLarge,
  deprecated: Deprecated,
  service_error: ServiceError,
  internal: InternalError,
};

/** A connection that broke with the call in flight: no answer will come, and whether the call ran is unknown. */
export class ConnectionLost extends GatewayError {
  /** The close code; 1006 without a close frame, because the network or the gateway failed. */
  readonly closeCode: number;
  readonly reason: string;

  constructor(closeCode: number, reason: string, options?: ErrorOptions) {
    super("connection_lost", `the connection was lost (${describe(closeCode, reason)})`, options);
    this.closeCode = closeCode;
    this.reason = reason;
  }
}

/** A closed client: by the application (close code 1000), or by a gateway that will not accept it again. */
export class ConnectionClosed extends GatewayError {
  readonly closeCode: number;
  readonly reason: string;

  constructor(closeCode: number, reason: string, options?: ErrorOptions) {
    super("connection_closed", `the client is closed (${describe(closeCode, reason)})`, options);
    this.closeCode = closeCode;
    this.reason = reason;
  }
}

/** A subscription that ended while it was in force, for example because the policy no longer allows it. */
export class Unsubscribed extends GatewayError {
  readonly topics: readonly string[];
  readonly reason: string;

  constructor(topics: readonly string[], reason: string) {
    super("unsubscribed", `the subscription to ${topics.join(", ")} has ended: ${reason}`);
    this.topics = topics;
    this.reason = reason;
  }
}

/** A token that could not be replaced before it expires; the cause is the reason. */
export class TokenRefreshFailed extends GatewayError {
  constructor(cause: unknown) {
    super("token_refresh", "the token could not be replaced", { cause });
  }
}

/** A frame that the protocol does not define, or a response to no call in flight. */
export class UnexpectedFrame extends GatewayError {
  constructor(message: string) {
    super("unexpected_frame", message);
  }
}

/** Make the error for the error of a response, or for an error frame. */
export function callFailed(error: ErrorPayload, traceId: string | null = null): CallFailed {
  const code = codeOf(error);
  return new (Object.hasOwn(CLASSES, code) ? CLASSES[code]! : CallFailed)(error, traceId);
}

/** Milliseconds that a client stays away at most, whatever the gateway asks for. */
const MAX_WAIT = 60_000;

/** Return the milliseconds that the client waits when the gateway asks for `retryAfter`: a minute at most. */
export function obeyed(retryAfter: number | null): number {
  return Math.min(retryAfter ?? 0, MAX_WAIT);
}

/** Return a `retry_after_ms` as a number of milliseconds; null unless it is a valid number. */
export function milliseconds(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
}

/**
 * Return whether the client must not reconnect after this close code.
 *
 * 4500-4999 are final, and so are the three for a message that must not be sent again. After all other codes, another
 * connection may work.
 */
export function isFinal(closeCode: number): boolean {
  return (closeCode >= 4500 && closeCode < 5000) || closeCode === 1003 || closeCode === 1007 || closeCode === 1009;
}

function codeOf({ code }: ErrorPayload): string {
  return typeof code === "string" ? code : "internal";
}

function describe(closeCode: number, reason: string): string {
  return reason ? `${closeCode}: ${reason}` : `${closeCode}`;
}
