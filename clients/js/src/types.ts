import type { Backoff } from "./backoff.js";
import type { ConnectionClosed, GatewayError } from "./errors.js";
import type { StorageLike } from "./session.js";
import type { Dropped, Gap, GatewayEvent, UnsubscribedNotice } from "./subscriptions.js";

/** The first frame of the gateway on every connection. */
export interface Hello {
  session_id: string;
  user_id: string;
  username: string;
  protocol: string;
  instance_id: string;
  /** Seconds since 1970; null if the token does not expire. */
  expires_at: number | null;
  /** Whether the gateway keeps sessions whose connections are lost. */
  resume: boolean;
  /** Times are in seconds, as the gateway sends them. */
  limits: { max_message_size: number; max_in_flight: number; request_timeout: number; ping_interval: number };
}

/** The state of the connection. */
export type State =
  /** Fetching a token, then connecting. */
  | { name: "connecting" }
  /** Connected, before the hello: the gateway checks the token. */
  | { name: "authorising" }
  /**
   * `resumed` is true if the session has survived the loss of its connection: no event is missing, and calls go on. It is
   * false if the session was lost, for the `reason` that the gateway names, and undefined if there was none.
   */
  | { name: "open"; hello: Hello; resumed: boolean | undefined; reason: string | undefined }
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
export type TokenReason = "connect" | "refresh" | "rejected" | "expired";

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
  /**
   * `websocket`, `sse` (a stream of Server-Sent Events, and a POST for each call), or `auto`: WebSockets, and the other
   * way while they are blocked. Default: `auto`, with the global WebSocket; a class of your own is always used.
   */
  transport?: "websocket" | "sse" | "auto" | undefined;
  /**
   * Functions to use instead of JSON.parse, for frames of the gateway, and JSON.stringify, for the parameters of calls.
   * Integers up to 2^53 must stay numbers. `json()` of `nuropb-gateway-client/json` returns a pair for BigInt and bytes.
   */
  parse?: ((text: string) => unknown) | undefined;
  stringify?: ((value: object) => string) | undefined;
  /** A class to use instead of the global WebSocket. */
  WebSocket?: SocketConstructor | undefined;
  /** Whether to reconnect after a lost connection. Default: true. */
  reconnect?: boolean | undefined;
  /** Whether to resume the session on the next connection, where the gateway offers that. Default: true. */
  resume?: boolean | undefined;
  /** Where to keep the session while the page is reloaded: pass `sessionStorage`. By default a reload is a new session. */
  storage?: StorageLike | undefined;
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
  /**
   * Returns the trace context of a call that is about to be made: the caller's span as the W3C's headers have it. With
   * OpenTelemetry, `propagation.inject(context.active(), carrier)` fills such an object.
   */
  trace?: (() => TraceContext | undefined) | undefined;
  /** Levels of JSON in a frame, as the gateway allows (`MAX_JSON_DEPTH`). Default: 32. */
  maxDepth?: number | undefined;
}

/** A span, as the headers of W3C Trace Context and Baggage have it. */
export interface TraceContext {
  traceparent?: string;
  tracestate?: string;
  baggage?: string;
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
