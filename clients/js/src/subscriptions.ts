import { type Backoff, after, jittered } from "./backoff.js";
import { Emitter, guarded } from "./emitter.js";
import { BadRequest, CallFailed, ConnectionClosed, ConnectionLost, type GatewayError, obeyed, Unsubscribed } from "./errors.js";
import { isObject } from "./objects.js";
import { matches } from "./topics.js";

/** An event of the mesh. */
export interface GatewayEvent<Event = unknown> {
  topic: string;
  event: Event;
  traceId: string | null;
  /** Where the event is in the history of its topic, if the gateway keeps one. */
  position?: Position;
}

/** A place in the history of a topic. */
export interface Position {
  /** The history that `offset` counts in. A history that was lost and began anew has another one. */
  epoch: string;
  offset: number;
}

/** The part of a history to begin with: behind a position, the last events, or those of the last seconds. */
export type Since = Position | { last: number } | { seconds: number };

/** What the gateway says of the history of one topic pattern. */
export interface Recovery extends Position {
  /** Whether everything behind the position that was asked for is delivered; else load the current state. */
  recovered: boolean;
  /** Events of the history that are delivered before those that are new. */
  count: number;
}

/** A notice that events may have been missed: fetch the current state again. */
export interface Gap {
  /** `reconnected` after a lost connection, or one of the gateway's own reasons. */
  reason: string;
  /** The topic patterns concerned. */
  topics: string[];
}

/** A notice that `count` events were dropped because they were read too slowly. */
export interface Dropped {
  count: number;
  /** Their topic, if they had only one. */
  topic: string | null;
}

/** A notice that the gateway has ended subscriptions. */
export interface UnsubscribedNotice {
  topics: string[];
  reason: string;
}

export interface SubscriptionEvents {
  gap: Gap;
  dropped: Dropped;
  /** The answer for topics with a history, by pattern: at the beginning, and after each loss of the session. */
  history: Record<string, Recovery>;
  /** The subscription has ended: its error, or null if the application ended it. */
  ended: GatewayError | null;
}

export interface SubscribeOptions {
  /** Events that may wait for the iteration; then the oldest are dropped and `dropped` reports it. Default: 1000. */
  buffer?: number | undefined;
  /** Begin with a part of the history of the topics. Needs topics for which the gateway keeps one. */
  since?: Since | undefined;
  /** Aborting it ends the subscription. */
  signal?: AbortSignal | undefined;
}

/** A subscription to topics. Its events go to a callback, or are iterated over once. Reconnections do not end it. */
export class Subscription<Event = unknown> implements AsyncIterable<GatewayEvent<Event>> {
  readonly topics: readonly string[];
  readonly #emitter = new Emitter<SubscriptionEvents>();
  readonly #callback: ((event: GatewayEvent<Event>) => void) | null;
  readonly #size: number;
  /** The part of the history, by pattern, with which the subscription begins or goes on. @internal */
  readonly since: Record<string, Since> = {};
  /** Whether events wait for the answer about the history, which has them, too. @internal */
  isHeld = false;
  readonly #leave: () => void;
  #ready!: Promise<this>;
  #resolve!: (subscription: this) => void;
  #reject!: (error: unknown) => void;
  #isReady = false;
  #isWatched = false;
  #ended: { error: GatewayError | null } | null = null;
  #buffer: GatewayEvent<Event>[] = [];
  #dropped = 0;
  /** Calls of next() that wait for an event. */
  #waiting: (() => void)[] = [];
  #isIterated = false;
  /** Called when the subscription ends. @internal */
  release = () => {};

  /** @internal */
  constructor(
    topics: readonly string[],
    callback: ((event: GatewayEvent<Event>) => void) | null,
    { buffer = 1000, since }: SubscribeOptions,
    leave: (subscription: Subscription<Event>) => void,
  ) {
    this.topics = topics;
    this.#callback = callback;
    this.#size = buffer;
    if (since !== undefined) for (const topic of topics) this.since[topic] = since;
    this.#leave = () => leave(this);
    this.#promise();
  }

  #promise(): void {
    this.#ready = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Readers of `ready` see a failure. Without readers, the client emits a warning instead.
    this.#ready.catch(() => {});
  }

  /** Resolves when the subscription is in force; rejects with a typed error when it is refused. */
  get ready(): Promise<this> {
    this.#isWatched = true;
    return this.#ready;
  }

  /** Call `listener` for every `name` from now on. Returns a function that removes it. */
  on<Name extends keyof SubscriptionEvents>(
    name: Name,
    listener: (value: SubscriptionEvents[Name]) => void,
  ): () => void {
    return this.#emitter.on(name, listener);
  }

  /** End the subscription. Events that have arrived can still be iterated over. */
  unsubscribe(): void {
    this.#leave();
  }

  /**
   * Iterate over the events, once. Stops if the application ended the subscription; throws the error of any other end.
   * The end of the iteration ends the subscription.
   */
  [Symbol.asyncIterator](): AsyncGenerator<GatewayEvent<Event>, void, undefined> {
    if (this.#isIterated) throw new TypeError("the subscription is iterated over already: subscribe once more");
    this.#isWatched = this.#isIterated = true;
    let isOver = false;
    const finish = (): { value: undefined; done: true } => {
      if (!isOver) this.#isIterated = false;
      isOver = true;
      return { value: undefined, done: true };
    };
    const stop = () => {
      const last = finish();
      this.#leave();
      this.#wake();
      return last;
    };
    const iterator = {
      next: async () => {
        for (;;) {
          if (isOver) return finish();
          if (this.#dropped > 0) {
            const count = this.#dropped;
            this.#dropped = 0;
            this.tell("dropped", { count, topic: null });
          }
          const event = this.#buffer.shift();
          if (event !== undefined) return { value: event, done: false };
          if (this.#ended !== null) {
            const last = finish();
            if (this.#ended.error !== null) throw this.#ended.error;
            return last;
          }
          await new Promise<void>((resolve) => this.#waiting.push(resolve));
        }
      },
      return: async () => stop(),
      throw: async (error: unknown) => {
        stop();
        throw error;
      },
      [Symbol.asyncIterator]: () => iterator,
    };
    return iterator as unknown as AsyncGenerator<GatewayEvent<Event>, void, undefined>;
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }

  /** @internal */
  wants(topic: string): boolean {
    return !this.isHeld && this.topics.some((pattern) => matches(pattern, topic));
  }

  /** @internal */
  deliver(event: GatewayEvent): void {
    const own = event as GatewayEvent<Event>;
    if (event.position !== undefined && !this.#advance(event.topic, event.position)) return;
    const callback = this.#callback;
    if (callback !== null) {
      guarded(() => callback(own));
      return;
    }
    if (this.#buffer.length >= this.#size) {
      this.#buffer.shift();
      this.#dropped++;
    }
    this.#buffer.push(own);
    this.#wake();
  }

  /** Note the position of an event. Returns whether the event is new: several subscriptions may ask for a history. */
  #advance(topic: string, position: Position): boolean {
    const patterns = this.topics.filter((pattern) => matches(pattern, topic));
    for (const pattern of patterns) {
      const last = this.since[pattern];
      if (last !== undefined && "epoch" in last) {
        // Another epoch is that of the history of another pattern.
        if (last.epoch !== position.epoch) continue;
        if (position.offset <= last.offset) return false;
      } else if (patterns.length > 1) {
        continue;
      }
      this.since[pattern] = position;
    }
    return true;
  }

  /** Take the answer for the topics with a history, whose `count` events follow. @internal */
  recover(history: Record<string, Recovery>): void {
    this.isHeld = false;
    for (const [pattern, { epoch, offset, count }] of Object.entries(history)) {
      if (count === 0) this.since[pattern] = { epoch, offset };
    }
    if (Object.keys(history).length > 0) this.tell("history", history);
  }

  /** Forget where it is in a history. Returns whether there is one and it has been in force. @internal */
  forget(): boolean {
    const patterns = Object.keys(this.since);
    if (!this.#isReady || patterns.length === 0) return false;
    for (const pattern of patterns) delete this.since[pattern];
    return true;
  }

  /** @internal */
  tell<Name extends keyof SubscriptionEvents>(name: Name, value: SubscriptionEvents[Name]): void {
    this.#emitter.emit(name, value);
  }

  /** Mark it as in force. Returns whether it was before: then events may have been missed since. @internal */
  inForce(): boolean {
    const before = this.#isReady;
    this.#isReady = true;
    this.#resolve(this);
    return before;
  }

  /** End it. Returns whether the application learns of the error. @internal */
  end(error: GatewayError | null, reason: GatewayError): boolean {
    if (this.#ended !== null) return true;
    this.#ended = { error };
    const told = this.#isReady ? this.#callback === null || error === null : this.#isWatched || error === null;
    this.#reject(error ?? reason);
    this.#wake();
    this.release();
    return this.#emitter.emit("ended", error) || told;
  }

  /** Begin again after the end. @internal */
  reopen(): void {
    this.#ended = null;
    this.#promise();
  }
}

/** The values that subscriptions emit to a client's listeners. */
export interface SubscriptionNews {
  gap: Gap;
  dropped: Dropped;
  unsubscribed: UnsubscribedNotice;
  warning: GatewayError;
}

/** The parts of a client that its subscriptions use. */
export interface SubscriptionHost {
  /** `answered` is called with the result before the next frame is read. */
  ask: (
    kind: "subscribe" | "unsubscribe",
    payload: { topics: string[]; since?: object },
    answered?: (result: unknown) => void,
  ) => Promise<unknown>;
  tell: <Name extends keyof SubscriptionNews>(name: Name, value: SubscriptionNews[Name]) => void;
  backoff: Backoff;
}

// A subscription with events of any type: they are parsed from JSON.
type AnySubscription = Subscription<any>;

/** All subscriptions of a client. The gateway sends an event once, and each matching subscription gets it. */
export class Subscriptions {
  readonly #host: SubscriptionHost;
  readonly #all = new Set<AnySubscription>();
  /** Subscriptions that ended with the client, which may be connected again. */
  readonly #closed = new Set<AnySubscription>();
  readonly #timers = new Set<ReturnType<typeof setTimeout>>();
  /** A new object for each connection, so that late answers are recognised; null while disconnected. */
  #link: object | null = null;

  constructor(host: SubscriptionHost) {
    this.#host = host;
  }

  add(subscription: AnySubscription): void {
    this.#all.add(subscription);
    if (this.#link !== null) void this.#enforce([subscription]);
  }

  /** End a subscription and unsubscribe its topics; `error` is null if the application asked for that. */
  end(subscription: AnySubscription, error: GatewayError | null): void {
    if (!this.#remove(subscription, error)) return;
    const others = this.#patterns(this.#all);
    this.#unsubscribe(subscription.topics.filter((topic) => !others.includes(topic)));
  }

  #unsubscribe(topics: string[]): void {
    if (this.#link === null || topics.length === 0) return;
    this.#host.ask("unsubscribe", { topics }).catch((reason: unknown) => {
      if (reason instanceof ConnectionLost || reason instanceof ConnectionClosed) return;
      this.#host.tell("warning", reason as GatewayError);
    });
  }

  #remove(subscription: AnySubscription, error: GatewayError | null): boolean {
    this.#closed.delete(subscription);
    if (!this.#all.delete(subscription)) return false;
    const cause = error ?? new Unsubscribed(subscription.topics, "by the application");
    if (!subscription.end(error, cause)) this.#host.tell("warning", cause);
    return true;
  }

  /** Subscribe all topics on a new connection. */
  connected(): void {
    this.#link = {};
    if (this.#all.size > 0) void this.#enforce([...this.#all]);
  }

  /** Go on with a resumed session, in which `topics` are in force without a gap. */
  resumed(topics: string[]): void {
    this.#link = {};
    const kept = new Set(topics);
    const missing = [...this.#all].filter((each) => !each.topics.every((topic) => kept.has(topic)));
    for (const each of this.#all) if (!missing.includes(each)) each.inForce();
    if (missing.length > 0) void this.#enforce(missing);
    const wanted = this.#patterns(this.#all);
    this.#unsubscribe(topics.filter((topic) => !wanted.includes(topic)));
  }

  disconnected(): void {
    this.#link = null;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }

  /** End all subscriptions; `error` is null if the application closed the client. */
  close(error: GatewayError | null): void {
    this.disconnected();
    const all = [...this.#all];
    this.#all.clear();
    for (const each of all) {
      if (error !== null) this.#closed.add(each);
      each.end(error, error ?? new ConnectionClosed(1000, "by the application"));
    }
  }

  /** Begin those subscriptions again that ended with the client. */
  reopen(): void {
    for (const each of this.#closed) {
      each.reopen();
      this.#all.add(each);
    }
    this.#closed.clear();
  }

  dispatch(event: GatewayEvent): void {
    for (const subscription of [...this.#all]) {
      if (subscription.wants(event.topic)) subscription.deliver(event);
    }
  }

  /** Handle the gateway's notices about subscriptions. Returns false for all other topics. */
  notice(topic: string, event: unknown): boolean {
    if (topic !== "gap" && topic !== "dropped" && topic !== "unsubscribed") return false;
    const payload = isObject(event) ? event : {};
    const topics = Array.isArray(payload.topics) ? payload.topics.map(String) : null;
    const concerned = [...this.#all].filter(
      (each) => topics === null || each.topics.some((pattern) => topics.includes(pattern)),
    );
    const reason = String(payload.reason ?? "");
    if (topic === "gap") {
      this.#gap({ reason, topics: topics ?? this.#patterns(this.#all) }, concerned);
    } else if (topic === "dropped") {
      const about = typeof payload.topic === "string" ? payload.topic : null;
      const dropped = { count: Number(payload.count ?? 1), topic: about };
      this.#host.tell("dropped", dropped);
      for (const each of concerned) {
        if (about === null || each.wants(about) || each.topics.includes(about)) each.tell("dropped", dropped);
      }
    } else if (topics !== null) {
      this.#host.tell("unsubscribed", { topics, reason });
      for (const each of concerned) this.end(each, new Unsubscribed(each.topics, reason));
    }
    return true;
  }

  async #enforce(subscriptions: AnySubscription[], attempt = 0): Promise<void> {
    const link = this.#link;
    const wanted = subscriptions.filter((each) => this.#all.has(each));
    const [first] = wanted;
    if (first === undefined) return;
    const past = wanted.filter((each) => Object.keys(each.since).length > 0);
    if (past.length > 0 && wanted.length > 1) {
      // Each may want another part of the same history.
      for (const each of past) void this.#enforce([each], attempt);
      void this.#enforce(
        wanted.filter((each) => !past.includes(each)),
        attempt,
      );
      return;
    }
    first.isHeld = past.length > 0;
    let history: Record<string, Recovery> = {};
    try {
      const more = first.isHeld ? { since: first.since } : {};
      await this.#host.ask("subscribe", { topics: this.#patterns(wanted), ...more }, (answer) => {
        if (isObject(answer) && isObject(answer.history)) history = answer.history as typeof history;
        first.recover(history); // events of the history may come with the answer
      });
    } catch (error) {
      if (this.#link !== link || error instanceof ConnectionLost) return; // the next connection subscribes again
      if (error instanceof CallFailed && error.retryable) {
        const wait = Math.max(obeyed(error.retryAfter), jittered(this.#host.backoff, attempt));
        const timer = after(wait, () => {
          this.#timers.delete(timer);
          void this.#enforce(wanted, attempt + 1);
        });
        this.#timers.add(timer);
      } else if (wanted.length > 1) {
        // The gateway refuses a frame as a whole, for one topic. The other subscriptions must not suffer for it.
        for (const each of wanted) void this.#enforce([each]);
      } else if (error instanceof BadRequest && first.forget()) {
        void this.#enforce(wanted); // the gateway keeps no history any more
      } else {
        this.#remove(first, error as GatewayError);
      }
      return;
    }
    if (this.#link !== link) return;
    const again = wanted.filter((each) => each.inForce());
    const topics = this.#patterns(again).filter((topic) => history[topic]?.recovered !== true);
    if (topics.length > 0) this.#gap({ reason: "reconnected", topics }, again);
  }

  #gap(gap: Gap, concerned: AnySubscription[]): void {
    this.#host.tell("gap", gap);
    for (const each of concerned) each.tell("gap", gap);
  }

  #patterns(subscriptions: Iterable<AnySubscription>): string[] {
    return [...new Set([...subscriptions].flatMap((each) => each.topics))];
  }
}
