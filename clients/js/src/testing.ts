// The entry nuropb-gateway-client/testing: a gateway in memory that speaks the protocol, for tests with Vitest, Jest and
// node:test. It uses no timers, so fake ones do not stop it.

import { type Client, type ConnectOptions, type SocketConstructor, connect, matches } from "./index.js";

/** A call as the mocked service gets it. */
export interface MockCall {
  readonly kind: "request" | "command";
  readonly service: string;
  readonly method: string;
  readonly params: Record<string, unknown>;
  readonly userId: string;
  readonly traceId: string;
}

/** An answer: a value, a {@link Failure}, a function of the parameters that returns or throws either, or a promise. */
export type Answer = unknown;

/** The error of a call, as a gateway sends it. Throw or return it in an answer. */
export class Failure extends Error {
  constructor(
    /** An error code of the protocol, such as `invalid_params`. */
    readonly code: string,
    description: string = code,
    readonly retryAfterMs: number | null = null,
  ) {
    super(description);
    this.name = "Failure";
  }
}

/** Options of a gateway in memory. */
export interface MockGatewayOptions {
  /** The user of a token; null refuses it. By default a token is the name of its user, and `bad` is refused. */
  userOf?: ((token: string) => string | null) | undefined;
}

const CODES_TO_RETRY = new Set(["service_unavailable", "mesh_unavailable", "too_many_requests"]);
/** Codes of errors whose NuroPb class is another one than NuropbException. */
const CLASSES: Record<string, string> = {
  invalid_params: "NuropbValidationError",
  permission_denied: "NuropbAuthorizationError",
  unauthenticated: "NuropbAuthenticationError",
  deprecated: "NuropbDeprecatedError",
};
const IN_PROTOCOL = "base64url.bearer.nuropb.";
/** Run a function in a microtask. Jest's fake timers replace queueMicrotask, and leave promises alone. */
const soon = (run: () => unknown): void => void Promise.resolve().then(run);

/** Make a gateway in memory. */
export function mockGateway(options: MockGatewayOptions = {}): MockGateway {
  return new MockGateway(options);
}

/** A gateway in memory, with mocked services. Clients connect by {@link connect}, or with its `WebSocket`. */
export class MockGateway {
  /** All calls so far, in order. */
  readonly calls: MockCall[] = [];
  /** The class to pass to `connect` of the client as `WebSocket`. */
  readonly WebSocket: SocketConstructor;
  /** Whether the mesh is away: then calls are `mesh_unavailable`. */
  meshIsAway = false;
  readonly #services = new Map<string, Map<string, Answer>>();
  readonly #sockets = new Set<MemorySocket>();
  readonly #clients: Client[] = [];
  readonly #userOf: (token: string) => string | null;
  #waiting: (() => void)[] = [];

  constructor({ userOf = (token) => (token === "bad" ? null : token) }: MockGatewayOptions) {
    this.#userOf = userOf;
    const gateway = this;
    this.WebSocket = class extends MemorySocket {
      constructor(_url: string, protocols: string[] = []) {
        super(gateway.#host, protocols);
      }
    } as unknown as SocketConstructor;
  }

  readonly #host: Host = {
    opened: (socket) => this.#sockets.add(socket),
    ended: (socket) => this.#sockets.delete(socket),
    userOf: (token) => this.#userOf(token),
    answer: (call) => this.#answer(call),
    describe: (service) => this.#describe(service),
  };

  /** Add a service with these methods, or put it in the place of the one with this name. */
  mock(service: string, methods: Record<string, Answer>): this {
    this.#services.set(service, new Map(Object.entries(methods)));
    return this;
  }

  /** Remove a service: its calls are `service_unavailable`. */
  remove(service: string): void {
    this.#services.delete(service);
  }

  /** Connect a client of `user`. It is closed by {@link close} at the latest. */
  connect(user = "alice", options: ConnectOptions = {}): Client {
    const client = connect("ws://gateway.test/ws", { token: user, tokenIn: "frame", ...options, WebSocket: this.WebSocket });
    this.#clients.push(client);
    return client;
  }

  /** Publish an event to the subscribers of `topic`, or to all connections of the `users`. */
  publish(topic: string, event: unknown = null, users?: readonly string[]): void {
    const text = JSON.stringify({ topic, event, trace_id: null });
    for (const socket of this.#sockets) socket.deliver(topic, text, users);
  }

  /** The last call of `name` (`orders.create`) with these parameters (without them: with any). Throws if there is none. */
  called(name: string, params?: Record<string, unknown>): MockCall {
    const found = this.#find(name, params);
    if (found !== undefined) return found;
    const calls = this.calls.map((call) => `${call.service}.${call.method} ${JSON.stringify(call.params)}`);
    const wanted = params === undefined ? "" : ` with ${JSON.stringify(params)}`;
    throw new Error(`${name} was not called${wanted}; calls: ${calls.join("; ") || "none"}`);
  }

  /** Wait for such a call. */
  async untilCalled(name: string, params?: Record<string, unknown>): Promise<MockCall> {
    for (;;) {
      const found = this.#find(name, params);
      if (found !== undefined) return found;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  /** Cut all connections, as a network does. Clients reconnect. */
  cut(): void {
    for (const socket of [...this.#sockets]) socket.end(1006, "");
  }

  /** Close all connections with a code of the protocol: 4005 for expired tokens, 1012 for a restart. */
  closeAll(code: number, reason = ""): void {
    for (const socket of [...this.#sockets]) socket.end(code, reason);
  }

  /** Tell all clients that events may be missing. */
  gap(reason = "overflow"): void {
    for (const socket of this.#sockets) socket.tell("gap", { reason, topics: [...socket.topics] });
  }

  /** Close all clients and connections. */
  close(): void {
    for (const client of this.#clients.splice(0)) client.close();
    this.closeAll(1000);
  }

  #find(name: string, params?: Record<string, unknown>): MockCall | undefined {
    const wanted = params === undefined ? null : canonical(params);
    return [...this.calls]
      .reverse()
      .find((call) => `${call.service}.${call.method}` === name && (wanted === null || canonical(call.params) === wanted));
  }

  async #answer(call: MockCall): Promise<unknown> {
    if (this.meshIsAway) throw new Failure("mesh_unavailable", "The service mesh is not reachable at the moment", 1000);
    const service = this.#services.get(call.service);
    if (service === undefined) {
      const known = [...this.#services.keys()].join(", ") || "none";
      throw new Failure("service_unavailable", `No service ${call.service} is mocked; there are: ${known}`);
    }
    if (!service.has(call.method)) {
      const known = [...service.keys()].join(", ") || "none";
      throw new Failure("method_not_found", `${call.service} has no method ${call.method}; there are: ${known}`);
    }
    this.calls.push(call);
    for (const resolve of this.#waiting.splice(0)) resolve();
    const answer = service.get(call.method);
    const value: unknown = await (typeof answer === "function" ? answer(call.params, call) : answer);
    if (value instanceof Failure) throw value;
    return value;
  }

  #describe(service: unknown): unknown {
    const services: Record<string, unknown> = {};
    for (const [name, methods] of this.#services) {
      if (typeof service === "string" && service !== name) continue;
      const parameters = { type: "object", properties: {}, required: [] };
      const described = [...methods.keys()].map((method) => [
        method,
        { description: "A mock", parameters, requires_encryption: false },
      ]);
      services[name] = { description: null, version: "mock", methods: Object.fromEntries(described) };
    }
    return { services, unavailable: [] };
  }
}

/** The part of a gateway that its connections need. */
interface Host {
  opened(socket: MemorySocket): void;
  ended(socket: MemorySocket): void;
  userOf(token: string): string | null;
  answer(call: MockCall): Promise<unknown>;
  describe(service: unknown): unknown;
}

type Payload = Record<string, any>;

/** A connection in memory: to the client it is a WebSocket. */
class MemorySocket {
  onopen: ((event: any) => void) | null = null;
  onmessage: ((event: any) => void) | null = null;
  onerror: ((event: any) => void) | null = null;
  onclose: ((event: any) => void) | null = null;
  readonly protocol = "nuropb.v1";
  readonly topics = new Set<string>();
  readonly #host: Host;
  #user: string | null = null;
  #ended = false;
  readonly #inFlight = new Set<string>();

  constructor(host: Host, protocols: string[]) {
    this.#host = host;
    soon(() => {
      if (this.#ended) return;
      host.opened(this);
      const coded = protocols.find((each) => each.startsWith(IN_PROTOCOL));
      this.onopen?.({});
      if (coded !== undefined) this.#admit(decoded(coded.slice(IN_PROTOCOL.length)));
      // A client with a token in a frame has sent it by now; one without a token has a cookie.
      else soon(() => this.#user === null && this.#admit("alice"));
    });
  }

  send(text: string): void {
    const { type, payload = {} } = JSON.parse(text) as { type: string; payload?: Payload };
    if (!this.#ended) this.#take(type, payload);
  }

  close(code = 1000, reason = ""): void {
    soon(() => this.end(code, reason));
  }

  /** End the connection. */
  end(code: number, reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#host.ended(this);
    this.onclose?.({ code, reason, wasClean: code !== 1006 });
  }

  /** Send an event of the protocol itself. */
  tell(topic: string, event: unknown): void {
    this.#send("event", { topic, event });
  }

  /** Send an event, given as the text of its payload, if it is for this connection. */
  deliver(topic: string, payload: string, users: readonly string[] | undefined): void {
    if (this.#user === null) return;
    const isMine = users === undefined ? [...this.topics].some((each) => matches(each, topic)) : users.includes(this.#user);
    if (isMine) this.#receive(`{"type":"event","payload":${payload}}`);
  }

  #take(type: string, payload: Payload): void {
    const { id = null, trace_id = null } = payload;
    if (type === "ping") this.#send("pong", undefined);
    else if (type === "authorize") this.#authorize(id, payload.token);
    else if (type === "request" || type === "command") void this.#call(type, payload);
    else if (type === "describe") this.#result(id, trace_id, this.#host.describe(payload.service));
    else if (type === "subscribe" || type === "unsubscribe") {
      for (const topic of payload.topics as string[]) this.topics[type === "subscribe" ? "add" : "delete"](topic);
      this.#result(id, trace_id, { topics: [...this.topics] });
    } else if (type === "cancel") {
      if (this.#inFlight.delete(id)) this.#failure(id, trace_id, new Failure("cancelled", "Cancelled by the client"));
    } else if (type !== "ack" && type !== "pong") {
      this.#failure(id, trace_id, new Failure("bad_request", `The gateway in memory knows no frame ${type}`));
    }
  }

  #authorize(id: unknown, token: string): void {
    const isFirst = this.#user === null;
    if (isFirst && !this.#admit(token)) return;
    const user = this.#host.userOf(token);
    if (user !== this.#user) this.#failure(id, null, new Failure("permission_denied", "The token is of another user"));
    else this.#result(id, null, { expires_at: null });
  }

  /** Say hello to the user of a token, or refuse it as a gateway refuses a browser. */
  #admit(token: string): boolean {
    const user = this.#host.userOf(token);
    if (user === null) {
      this.#failure(null, null, new Failure("unauthenticated", "The token does not identify a user"));
      this.end(4510, "invalid token");
      return false;
    }
    this.#user = user;
    this.tell("hello", {
      session_id: "0".repeat(32),
      user_id: user,
      username: user,
      protocol: "nuropb.v1",
      instance_id: "in-memory",
      expires_at: null,
      resume: false,
      limits: { max_message_size: 65536, max_in_flight: 64, request_timeout: 30, ping_interval: 25 },
    });
    return true;
  }

  async #call(kind: "request" | "command", payload: Payload): Promise<void> {
    const { id, service, method, params = {}, trace_id = null } = payload;
    const traceId = typeof trace_id === "string" ? trace_id : "0".repeat(32);
    const call: MockCall = { kind, service, method, params, userId: this.#user ?? "", traceId };
    this.#inFlight.add(id);
    const answer = this.#host.answer(call);
    try {
      // A command is answered once the mesh has it, whatever becomes of it.
      const result = kind === "command" ? await Promise.race([answer, Promise.resolve(null)]).then(() => null) : await answer;
      if (this.#inFlight.delete(id)) this.#result(id, traceId, result);
    } catch (error) {
      const failure = error instanceof Failure ? error : new Failure("service_error", String(error));
      if (this.#inFlight.delete(id)) this.#failure(id, traceId, failure);
    }
    answer.catch(() => {}); // of a command, whose failure no client gets
  }

  #result(id: unknown, traceId: unknown, result: unknown): void {
    this.#send("response", { id, trace_id: traceId, result: result ?? null, error: null });
  }

  #failure(id: unknown, traceId: unknown, { code, message, retryAfterMs }: Failure): void {
    const retryable = CODES_TO_RETRY.has(code);
    const error = { error: CLASSES[code] ?? "NuropbException", description: message, code, retryable, retry_after_ms: retryAfterMs };
    if (id === null) this.#send("error", { id, trace_id: traceId, error });
    else this.#send("response", { id, trace_id: traceId, result: null, error });
  }

  #send(type: string, payload: Payload | undefined): void {
    this.#receive(JSON.stringify({ type, payload }));
  }

  /** Bring a text to the client, in a turn of its own, as a network does. */
  #receive(data: string): void {
    soon(() => this.#ended || this.onmessage?.({ data }));
  }
}

/** Read base64url, which a token in a subprotocol is coded as. */
function decoded(text: string): string {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (each) => each.charCodeAt(0));
  return new TextDecoder().decode(bytes);
}

/** JSON with the members of all objects in order, to compare values. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, each: unknown) =>
    typeof each === "object" && each !== null && !Array.isArray(each)
      ? Object.fromEntries(Object.entries(each).sort(([one], [other]) => (one < other ? -1 : 1)))
      : each,
  );
}
