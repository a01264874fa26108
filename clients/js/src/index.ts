import { type Connect, connectWith } from "./connect.js";

export type { Connect, ConnectOptions } from "./connect.js";
export type { Client } from "./client.js";
export type {
  ClientEvents,
  ClientOptions,
  Description,
  GetToken,
  Hello,
  SocketConstructor,
  SocketLike,
  State,
  TokenReason,
  TraceContext,
} from "./types.js";
export type { Backoff } from "./backoff.js";
export type { CallOptions } from "./calls.js";
export {
  BadRequest,
  CallFailed,
  CallTimeout,
  Cancelled,
  ConnectionClosed,
  ConnectionLost,
  Deprecated,
  DuplicateId,
  GatewayError,
  InternalError,
  InvalidParams,
  MeshUnavailable,
  MethodNotFound,
  PayloadTooLarge,
  PermissionDenied,
  ServiceError,
  ServiceUnavailable,
  TokenRefreshFailed,
  TooManyRequests,
  Unauthenticated,
  UnexpectedFrame,
  Unsubscribed,
} from "./errors.js";
export type {
  Dropped,
  Gap,
  GatewayEvent,
  Position,
  Recovery,
  Since,
  SubscribeOptions,
  Subscription,
  SubscriptionEvents,
  UnsubscribedNotice,
} from "./subscriptions.js";
export { matches } from "./topics.js";
export { VERSION } from "./version.js";

/**
 * Make a client of the gateway at `url` (`wss://...`, or a path on the page's host). It starts to connect at once, and
 * its methods may be called before it is connected.
 *
 * Throws TypeError for invalid arguments.
 */
export const connect: Connect = /* @__PURE__ */ connectWith(() => {
  throw new TypeError('shared is an entry of its own: import { connect } from "nuropb-gateway-client/shared"');
});
