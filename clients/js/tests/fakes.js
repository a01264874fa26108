// A WebSocket without a network, for tests of the client in Node: the test is the gateway.

/** @typedef {{ type: string, payload: Record<string, any> }} Frame */

export class FakeSocket {
  /** @type {FakeSocket[]} */
  static all = [];
  /** @type {((event: any) => void) | null} */
  onopen = null;
  /** @type {((event: any) => void) | null} */
  onmessage = null;
  /** @type {((event: any) => void) | null} */
  onerror = null;
  /** @type {((event: any) => void) | null} */
  onclose = null;
  /** @type {Frame[]} */
  sent = [];
  /** @type {number | null} */
  closedWith = null;

  constructor() {
    FakeSocket.all.push(this);
  }

  /** The connection that was made last. */
  static get last() {
    return /** @type {FakeSocket} */ (this.all.at(-1));
  }

  /** @param {string} text */
  send(text) {
    this.sent.push(JSON.parse(text));
  }

  /** @param {number} code */
  close(code) {
    this.closedWith = code;
  }

  /** Open the connection and send hello. */
  greet() {
    this.onopen?.({});
    this.receive("event", { topic: "hello", event: { session_id: "s", limits: {} } });
  }

  /** Answer a frame that the client has sent. @param {string} type @param {any} result */
  answer(type, result = null) {
    const { payload } = /** @type {Frame} */ (this.sent.filter((frame) => frame.type === type).at(-1));
    this.receive("response", { id: payload.id, result, error: null });
  }

  /** @param {string} type @param {object} payload */
  receive(type, payload) {
    this.onmessage?.({ data: JSON.stringify({ type, payload }) });
  }
}

/** Let all promises go on. */
export const settled = () => new Promise((resolve) => setTimeout(resolve, 0));
