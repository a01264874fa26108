/**
 * What can go wrong, as classes and as codes.
 *
 *     GatewayError
 *     ├── CallFailed            a call has an answer, and it is an error: one class for each code
 *     ├── ConnectionLost        the connection broke during a call; whether it ran is unknown
 *     ├── ConnectionClosed      the client is closed, by its owner or for good by the gateway
 *     ├── Unsubscribed          the gateway has ended a subscription
 *     ├── TokenRefreshFailed    there is no newer token, or it is refused (a warning, never thrown)
 *     └── UnexpectedFrame       the gateway sent what the protocol does not know
 */

/** The error of a response, or an error frame, as the gateway sends it. */
export interface ErrorPayload {
  code?: unknown;
  description?: unknown;
  error?: unknown;
  retryable?: unknown;
  retry_after_ms?: unknown;
}

/** The base of everything that this client throws, except for wrong arguments (TypeError, RangeError). */
export class GatewayError extends Error {
  /** For programs: a code of the protocol, or one of this client. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** A call ended with an error. Codes that have no class of their own come as this one. */
export class CallFailed extends GatewayError {
  /** Whether the call was not delivered, so that it may be made again without harm. */
  readonly retryable: boolean;
  /** How long to wait before that, in milliseconds; null if the gateway names no time. */
  readonly retryAfter: number | null;
  /** What to look for in the logs of gateway and services. */
  readonly traceId: string | null;
  /** The class that NuroPb uses for it. */
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

/** Not a valid frame: a service, method or topic with a name that cannot be, for example. */
export class BadRequest extends CallFailed {}
/** The service does not accept the parameters. */
export class InvalidParams extends CallFailed {}
/** The token is not valid, or the service does not accept it. */
export class Unauthenticated extends CallFailed {}
/** The gateway's policy or the service does not allow it. */
export class PermissionDenied extends CallFailed {}
/** The service has no such method. */
export class MethodNotFound extends CallFailed {}
/** The id is in flight. */
export class DuplicateId extends CallFailed {}
/** There is no such service, or it answers nobody at the moment. */
export class ServiceUnavailable extends CallFailed {}
/** The gateway has no connection to the mesh. */
export class MeshUnavailable extends CallFailed {}
/** No answer in time. Unless it is retryable, whether the call ran is unknown. */
export class CallTimeout extends CallFailed {}
/** Cancelled, and not by this client. */
export class Cancelled extends CallFailed {}
/** Too many calls, in flight, waiting, or failing. */
export class TooManyRequests extends CallFailed {}
/** The parameters or the result are over a limit. */
export class PayloadTooLarge extends CallFailed {}
/** The service wants another method to be called. */
export class Deprecated extends CallFailed {}
/** The service failed. */
export class ServiceError extends CallFailed {}
/** The gateway failed. */
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

/** The connection broke while the call was in flight. It has no answer any more, and whether it ran is unknown. */
export class ConnectionLost extends GatewayError {
  /** The close code: 1006 if there was none, because the network or the gateway just went. */
  readonly closeCode: number;
  readonly reason: string;

  constructor(closeCode: number, reason: string, options?: ErrorOptions) {
    super("connection_lost", `the connection was lost (${describe(closeCode, reason)})`, options);
    this.closeCode = closeCode;
    this.reason = reason;
  }
}

/** The client is closed: by its owner (close code 1000), or by a gateway that does not want it back. */
export class ConnectionClosed extends GatewayError {
  readonly closeCode: number;
  readonly reason: string;

  constructor(closeCode: number, reason: string, options?: ErrorOptions) {
    super("connection_closed", `the client is closed (${describe(closeCode, reason)})`, options);
    this.closeCode = closeCode;
    this.reason = reason;
  }
}

/** A subscription has ended that was in force, for example because the user may not see it any more. */
export class Unsubscribed extends GatewayError {
  readonly topics: readonly string[];
  readonly reason: string;

  constructor(topics: readonly string[], reason: string) {
    super("unsubscribed", `the subscription to ${topics.join(", ")} has ended: ${reason}`);
    this.topics = topics;
    this.reason = reason;
  }
}

/** The token of the connection could not be replaced; the cause says why. */
export class TokenRefreshFailed extends GatewayError {
  constructor(cause: unknown) {
    super("token_refresh", "the token could not be replaced", { cause });
  }
}

/** The gateway sent what the protocol does not know, or an answer to a question that is not open. */
export class UnexpectedFrame extends GatewayError {
  constructor(message: string) {
    super("unexpected_frame", message);
  }
}

/** The error of its class for what the gateway sent. */
export function callFailed(error: ErrorPayload, traceId: string | null = null): CallFailed {
  const code = codeOf(error);
  return new (Object.hasOwn(CLASSES, code) ? CLASSES[code]! : CallFailed)(error, traceId);
}

/** A `retry_after_ms` as a number of milliseconds, or null for what is none. */
export function milliseconds(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
}

/**
 * Whether a connection that was closed with this code must not be made again.
 *
 * 4500-4999 are final, and so are the three that say: do not send that again. All else may heal.
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
