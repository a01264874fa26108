import type { CallFailed } from "./errors.js";
import type { Frame } from "./frames.js";
import type { Hello, SocketLike } from "./types.js";

/** One WebSocket connection, from its start to its end. */
export interface Link {
  socket: SocketLike;
  isHttp: boolean;
  openedAt: number | null;
  heardAt: number;
  /** Time by performance.now() until which the gateway has to answer a ping; Infinity without one. */
  pongBy: number;
  /** Whether a call waits for its answer, which is watched. */
  isBusy: boolean;
  readonly startedAt: number;
  timers: { [name in "connect" | "token" | "error" | "silence" | "refresh" | "goodbye"]?: ReturnType<typeof setTimeout> };
  /** The last error that the gateway sent. */
  lastError: CallFailed | null;
  /** The reason why the connection failed, as far as the runtime tells. */
  problem: unknown;
  /** Milliseconds to stay away after the end of the connection, from a goodbye. */
  stayAway: number;
  /** Time by performance.now() before which not to reconnect, from an error. */
  notBefore: number;
  hello: Hello | null;
  /** Whether the answer to `resume` is still to come. */
  isResuming: boolean;
  /** Whether frames are counted: since the answer to `resume`. */
  isCounting: boolean;
  /** Frames that are handled, or dropped, once it is known whether the session is resumed. */
  held: Frame[] | null;
  /** Number of frames that the gateway sends again, and its part of the session, until the last of them. */
  replay: { left: number; inFlight: string[]; topics: string[] } | null;
  /** Whether the gateway said goodbye. */
  isLeaving: boolean;
  /** Number of attempts to move its session to another connection. */
  moves: number;
}

/** Make the state of a connection that begins now. */
export function makeLink(socket: SocketLike, isHttp: boolean): Link {
  return {
    socket,
    isHttp,
    openedAt: null,
    heardAt: performance.now(),
    pongBy: Infinity,
    isBusy: false,
    startedAt: performance.now(),
    timers: {},
    lastError: null,
    problem: undefined,
    stayAway: 0,
    notBefore: 0,
    hello: null,
    isResuming: false,
    isCounting: false,
    held: null,
    replay: null,
    isLeaving: false,
    moves: 0,
  };
}
