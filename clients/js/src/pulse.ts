import { after } from "./backoff.js";
import type { Calls } from "./calls.js";
import type { Link } from "./link.js";

/** Milliseconds after which a call without an answer makes the client ask whether the connection is alive. */
const SLOW_CALL = 4000;

/** The pings of connections: after a silence, and sooner if a call waits for its answer. */
export class Pulse {
  readonly #calls: Calls;
  readonly #interval: () => number;
  readonly #timeout: number;
  readonly #drop: (link: Link, reason: string) => void;

  /** `interval` returns the milliseconds of silence before a ping; `timeout` is the time for its answer. */
  constructor(calls: Calls, interval: () => number, timeout: number, drop: (link: Link, reason: string) => void) {
    this.#calls = calls;
    this.#interval = interval;
    this.#timeout = timeout;
    this.#drop = drop;
  }

  /** Ping the gateway when it is due; drop the connection without a pong. */
  watch(link: Link): void {
    clearTimeout(link.timers.silence);
    const now = performance.now();
    if (now >= link.pongBy) {
      this.#drop(link, "the gateway does not answer");
      return;
    }
    const since = this.#calls.waitingSince;
    link.isBusy = since < Infinity;
    const due = Math.min(link.heardAt + this.#interval(), Math.max(link.heardAt, since) + SLOW_CALL);
    if (now >= due) this.ping(link, this.#timeout);
    link.timers.silence = after(Math.min(link.pongBy, now >= due ? Infinity : due) - now, () => this.watch(link));
  }

  /** Ask whether the gateway answers within `timeout` milliseconds. */
  ping(link: Link, timeout: number): void {
    if (link.pongBy === Infinity) link.socket.send('{"type":"ping"}');
    link.pongBy = Math.min(link.pongBy, performance.now() + timeout);
  }

  /** Note a message from the gateway. */
  heard(link: Link): void {
    link.heardAt = performance.now();
    if (link.pongBy < Infinity) {
      link.pongBy = Infinity;
      this.watch(link);
    }
  }
}
