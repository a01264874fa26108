import { after } from "./backoff.js";

/** The part of the interface of `sessionStorage` that the client uses. */
export interface StorageLike {
  getItem(name: string): string | null;
  setItem(name: string, value: string): void;
  removeItem(name: string): void;
}

/** Counted frames after which they are acknowledged; the protocol's number. */
const ACKNOWLEDGED_FRAMES = 64;
/** Milliseconds after which a counted frame is acknowledged; the protocol's number. */
const ACKNOWLEDGED_AFTER = 5000;

/** The client's part of a session that survives its connection: a key, and the number of counted frames received. */
export class Session {
  /** Good for one return to the session; empty if the session cannot be resumed. */
  key = "";
  received = 0;
  #acknowledged = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Take the key of an answer to `resume`, and count on from `received`. */
  renew(key: string, received: number): void {
    this.pause();
    this.key = key;
    this.received = this.#acknowledged = received;
  }

  /** Count a frame, and acknowledge it now or later. */
  count(send: (text: string) => void): void {
    this.received++;
    if (this.received - this.#acknowledged >= ACKNOWLEDGED_FRAMES) this.#acknowledge(send);
    else this.#timer ??= after(ACKNOWLEDGED_AFTER, () => this.#acknowledge(send));
  }

  /** Acknowledge nothing until the next frame: the connection has ended. */
  pause(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** Forget the session. */
  end(): void {
    this.renew("", 0);
  }

  #acknowledge(send: (text: string) => void): void {
    this.pause();
    this.#acknowledged = this.received;
    send(`{"type":"ack","payload":{"received":${this.received}}}`);
  }
}

/**
 * Keep a session in `storage` while a page is reloaded. Returns a function that stops that.
 *
 * The storage has the key only between two pages: a duplicated tab gets a copy of its storage, and must not take the
 * session of its original.
 */
export function keep(
  storage: StorageLike,
  url: string,
  session: Session,
  ids: { lastId: number; restore: (lastId: number) => void },
): () => void {
  const name = `nuropb-gateway-client ${url}`;
  const forget = () => storage.removeItem(name);
  const save = () => {
    if (session.key !== "") storage.setItem(name, JSON.stringify([session.key, session.received, ids.lastId]));
  };
  try {
    const [key, received, lastId] = JSON.parse(storage.getItem(name) ?? "[]") as unknown[];
    forget();
    if (typeof key === "string" && typeof received === "number" && typeof lastId === "number") {
      session.renew(key, received);
      ids.restore(lastId);
    }
  } catch (error) {
    console.warn("nuropb-gateway-client: the page's storage cannot be used:", error);
  }
  if (typeof addEventListener !== "function") return () => {};
  addEventListener("pagehide", save);
  addEventListener("pageshow", forget);
  return () => {
    removeEventListener("pagehide", save);
    removeEventListener("pageshow", forget);
  };
}
