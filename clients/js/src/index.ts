export { connect, type ConnectOptions } from "./connect.js";
export {
  Client,
  type ClientEvents,
  type ClientOptions,
  type Description,
  type GetToken,
  type Hello,
  type SocketConstructor,
  type SocketLike,
  type State,
  type TokenReason,
} from "./client.js";
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
export {
  type Dropped,
  type Gap,
  type GatewayEvent,
  type SubscribeOptions,
  Subscription,
  type SubscriptionEvents,
  type UnsubscribedNotice,
} from "./subscriptions.js";
export { matches } from "./topics.js";
export { VERSION } from "./version.js";
