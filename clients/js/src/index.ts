export { connect, type ConnectOptions } from "./connect.js";
export type {
  Client,
  ClientEvents,
  ClientOptions,
  Description,
  GetToken,
  Hello,
  SocketConstructor,
  SocketLike,
  State,
  TokenReason,
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
export type {
  Dropped,
  Gap,
  GatewayEvent,
  SubscribeOptions,
  Subscription,
  SubscriptionEvents,
  UnsubscribedNotice,
} from "./subscriptions.js";
export { matches } from "./topics.js";
export { VERSION } from "./version.js";
