// Runs the client's steps of the scripts in tests/conformance. tests/kit/conformance.py does the same with the Python
// client. Each message is a line of JSON: {"run": script} comes in, {"done": problem or null} goes out.

import { createInterface } from "node:readline";

import * as library from "nuropb-gateway-client";

/**
 * @typedef {Record<string, any>} Step
 * @typedef {{ url: string, token: any, options: Record<string, any>, client: Step[], step_timeout?: number }} Script
 */

/** In seconds; a script may set its own. */
const STEP_TIMEOUT = 30;
const THE_END = "the end";
const NAMES = /** @type {const} */ (["state", "event", "gap", "dropped", "unsubscribed", "goodbye", "warning"]);

class ScriptError extends Error {}

/** @type {Map<string, { promise: Promise<void>, resolve: () => void }>} */
let markers = new Map();

/** @param {object} message */
const tell = (message) => process.stdout.write(JSON.stringify(message) + "\n");

/** @param {string} name */
function marker(name) {
  let entry = markers.get(name);
  if (entry === undefined) {
    let resolve = () => {};
    entry = { promise: new Promise((resolve_) => (resolve = resolve_)), resolve: () => resolve() };
    markers.set(name, entry);
  }
  return entry;
}

/**
 * Return a difference between `wanted` and `given`, or null. Objects may have more members than wanted.
 * @param {any} wanted
 * @param {any} given
 * @returns {string | null}
 */
function difference(wanted, given, where = "it") {
  if (wanted?.$between) {
    const [low, high] = wanted.$between;
    return given >= low && given <= high ? null : `${where}: ${given} is not between ${low} and ${high}`;
  }
  if (Array.isArray(wanted)) {
    return JSON.stringify(wanted) === JSON.stringify(given) ? null : `${where}: ${JSON.stringify(given)}`;
  }
  if (typeof wanted === "object" && wanted !== null && typeof given === "object" && given !== null) {
    for (const [name, value] of Object.entries(wanted)) {
      if (!(name in given)) return `${where}.${name} is missing in ${JSON.stringify(given)}`;
      const reason = difference(value, given[name], `${where}.${name}`);
      if (reason !== null) return reason;
    }
    return null;
  }
  if (typeof wanted === "number" && typeof given === "number" && Math.abs(wanted - given) < 1e-6) return null;
  return wanted === given ? null : `${where}: ${JSON.stringify(given)} instead of ${JSON.stringify(wanted)}`;
}

/**
 * @param {any} wanted
 * @param {any} given
 */
function compare(wanted, given) {
  const reason = difference(wanted, given);
  if (reason !== null) throw new ScriptError(reason);
}

/**
 * Convert a value of the client to the form that both drivers share: names with underscores, times in seconds.
 * @param {any} value
 * @returns {any}
 */
function plain(value) {
  if (value instanceof library.GatewayError) {
    const more = /** @type {any} */ (value);
    const result = /** @type {Record<string, any>} */ ({ class: value.constructor.name, code: value.code });
    if (value instanceof library.CallFailed) {
      result.description = value.message;
      result.retryable = value.retryable;
      result.retry_after = value.retryAfter === null ? null : value.retryAfter / 1000;
      result.trace_id = value.traceId;
    }
    if ("closeCode" in more) result.close_code = more.closeCode;
    if ("reason" in more) result.reason = more.reason;
    if ("topics" in more) result.topics = [...more.topics];
    result.cause = value.cause === undefined ? null : plain(value.cause);
    return result;
  }
  if (value instanceof Error) return { class: value.name, description: value.message };
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  const names = /** @type {Record<string, string>} */ ({ traceId: "trace_id", retryAfter: "retry_after" });
  return Object.fromEntries(
    Object.entries(value).map(([name, each]) => [
      names[name] ?? name,
      name === "event" ? each : name === "delay" || name === "retryAfter" ? each / 1000 : plain(each),
    ]),
  );
}

/** The values that a listener of one name has received, in order. */
class Heard {
  /** @type {any[]} */
  values = [];
  wake = () => {};

  /** @param {any} value */
  add(value) {
    this.values.push(plain(value));
    this.wake();
  }

  async next() {
    while (this.values.length === 0) await new Promise((resolve) => (this.wake = () => resolve(undefined)));
    return this.values.shift();
  }
}

/**
 * Return a token, or for a list a function that returns its items in turn, and the last one for ever.
 * @param {any} given
 */
function tokenOptions(given) {
  if (given === null) return {};
  if (!Array.isArray(given)) return { token: given };
  const tokens = [...given];
  return {
    getToken: async () => {
      const value = tokens.length > 1 ? tokens.shift() : tokens[0];
      if (value?.raise) throw new Error(value.raise);
      return value;
    },
  };
}

/** @param {Record<string, any>} given */
function clientOptions({ backoff_base, backoff_cap, random, ...rest }) {
  /** @type {Record<string, any>} */
  const options = { backoff: { base: backoff_base * 1000, cap: backoff_cap * 1000, random: () => random } };
  for (const [name, value] of Object.entries(rest)) {
    const camel = name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
    options[camel] = typeof value === "number" && !name.startsWith("max_") ? value * 1000 : value;
  }
  return options;
}

class Actor {
  /** @type {Map<string, { promise: Promise<any>, controller: AbortController }>} */
  calls = new Map();
  /** @type {Map<string, { subscription: library.Subscription, iterator: AsyncGenerator<any> | null }>} */
  subscriptions = new Map();
  /** @type {Map<string, Heard>} */
  heard = new Map();

  /** @param {library.Client} client */
  constructor(client) {
    this.client = client;
    for (const name of NAMES) this.listen(name, (listener) => client.on(name, listener));
  }

  /**
   * @param {string} name
   * @param {(listener: (value: any) => void) => void} on
   */
  listen(name, on) {
    const heard = new Heard();
    this.heard.set(name, heard);
    on((value) => heard.add(value));
    return heard;
  }

  toString() {
    const told = Object.fromEntries([...this.heard].map(([name, { values }]) => [name, values]));
    return `the client is ${JSON.stringify(plain(this.client.state))}, and has told ${JSON.stringify(told)}`;
  }

  /**
   * @param {string} name
   * @param {(signal: AbortSignal) => Promise<any>} begin
   */
  start(name, begin) {
    const controller = new AbortController();
    const promise = begin(controller.signal);
    promise.catch(() => {}); // a later step awaits it
    this.calls.set(name, { promise, controller });
  }

  /** @param {Step} step */
  async do({ as: name = "", is, ...step }) {
    const options = { ...step, timeout: step.timeout === undefined ? undefined : step.timeout * 1000 };
    const call = (/** @type {string} */ which) => /** @type {NonNullable<any>} */ (this.calls.get(which));
    const entry = (/** @type {string} */ which) => /** @type {NonNullable<any>} */ (this.subscriptions.get(which));
    switch (Object.keys(step)[0]) {
      case "request":
        return this.start(name, (signal) => {
          const [service, method, params] = step.request;
          return this.client.request(service, method, params, { ...options, signal });
        });
      case "command":
        return this.start(name, (signal) => {
          const [service, method, params] = step.command;
          return this.client.command(service, method, params, { ...options, signal }).then(() => null);
        });
      case "describe":
        return this.start(name, (signal) => this.client.describe(step.describe ?? undefined, { signal }));
      case "authorize":
        return this.start(name, () => this.client.authorize(step.authorize));
      case "keep_calling":
        return this.keepCalling(step.keep_calling, step.until, options);
      case "result":
        return compare(is, await call(step.result).promise);
      case "error":
        return compare(is, await failure(call(step.error).promise));
      case "cancel":
        return call(step.cancel).controller.abort();
      case "subscribe":
        return this.subscribe(name, step);
      case "ready":
        return void (await entry(step.ready).subscription.ready);
      case "refused":
        return compare(is, await failure(entry(step.refused).subscription.ready));
      case "event": {
        const heard = this.heard.get(`${step.event}.events`);
        return compare(is, await (heard === undefined ? this.next(step.event) : heard.next()));
      }
      case "ends":
        return compare(is, await this.end(step.ends));
      case "unsubscribe":
        return entry(step.unsubscribe).subscription.unsubscribe();
      case "heard":
        return this.hear(step.heard, is);
      case "silent": {
        const { values } = /** @type {Heard} */ (this.heard.get(step.silent));
        if (values.length > 0) throw new ScriptError(`the client has told ${JSON.stringify(values)}`);
        return;
      }
      case "wait":
        tell({ wait: step.wait });
        return marker(step.wait).promise;
      case "signal":
        return void tell({ signal: step.signal });
      case "close":
        return this.client.close();
      default:
        throw new ScriptError("there is no such step");
    }
  }

  /**
   * Make one call after the other. Each has an id of its own, which the answer must repeat.
   * @param {string[]} call
   * @param {string} until
   * @param {Record<string, any>} options
   */
  async keepCalling([service = "", method = ""], until, options) {
    let isOver = false;
    tell({ wait: until });
    void marker(until).promise.then(() => (isOver = true));
    while (!isOver) {
      const id = crypto.randomUUID();
      compare(id, await this.client.request(service, method, { id }, options));
    }
  }

  /**
   * @param {string} name
   * @param {Step} step
   */
  subscribe(name, { subscribe: topics, callback = false, buffer, since, listen = true }) {
    const heard = callback ? this.listen(`${name}.events`, () => {}) : null;
    const subscription = this.client.subscribe(topics, heard && ((event) => heard.add(event)), { buffer, since });
    const iterator = callback ? null : subscription[Symbol.asyncIterator]();
    this.subscriptions.set(name, { subscription, iterator });
    if (!listen) return;
    for (const each of /** @type {const} */ (["gap", "dropped", "ended"])) {
      this.listen(`${name}.${each}`, (listener) => subscription.on(each, listener));
    }
    // The scripts have the answers for all patterns together.
    this.listen(`${name}.recovered`, (listener) => subscription.on("history", (answers) => {
      const parts = Object.values(answers);
      const count = parts.reduce((sum, part) => sum + part.count, 0);
      listener({ topics: Object.keys(answers), recovered: parts.every((part) => part.recovered), count });
    }));
  }

  /** @param {string} name */
  async next(name) {
    const { value, done } = await /** @type {any} */ (this.subscriptions.get(name)).iterator.next();
    if (done) throw new ScriptError("the subscription has ended");
    return plain(value);
  }

  /** @param {string} name */
  async end(name) {
    try {
      const { value, done } = await /** @type {any} */ (this.subscriptions.get(name)).iterator.next();
      if (!done) throw new ScriptError(`it has not ended: ${JSON.stringify(value)}`);
      return null;
    } catch (error) {
      if (error instanceof ScriptError) throw error;
      return plain(error);
    }
  }

  /**
   * Wait for the client to emit `wanted` under `name`, and skip other values before it.
   * @param {string} name
   * @param {any} wanted
   */
  async hear(name, wanted) {
    const heard = /** @type {Heard} */ (this.heard.get(name));
    while (difference(wanted, await heard.next()) !== null);
  }
}

/** @param {Promise<any>} promise */
async function failure(promise) {
  let result;
  try {
    result = await promise;
  } catch (error) {
    return error instanceof Error && error.name === "AbortError" ? { class: "cancelled" } : plain(error);
  }
  throw new ScriptError(`it has not failed: ${JSON.stringify(result)}`);
}

/**
 * @param {Promise<any>} promise
 * @param {number} timeout
 * @param {() => string} explain
 */
async function inTime(promise, timeout, explain) {
  /** @type {NodeJS.Timeout | undefined} */
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new ScriptError(`not in time; ${explain()}`)), timeout);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * @param {Script} script
 * @returns {Promise<string | null>}
 */
async function run({ url, token, options, client: steps, step_timeout: stepTimeout = STEP_TIMEOUT }) {
  markers = new Map();
  const client = library.connect(url, { ...tokenOptions(token), ...clientOptions(options) });
  const actor = new Actor(client);
  try {
    for (const [index, step] of steps.entries()) {
      try {
        await inTime(actor.do(step), stepTimeout * 1000, () => String(actor));
      } catch (error) {
        const reason = error instanceof ScriptError ? error.message : String(error instanceof Error ? error.stack : error);
        return `client step ${index + 1} (${JSON.stringify(step)}): ${reason}`;
      }
    }
    tell({ wait: THE_END });
    await marker(THE_END).promise;
    return null;
  } finally {
    client.close();
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const message = JSON.parse(line);
  if (message.run) void run(message.run).then((done) => tell({ done }));
  else marker(message.reached).resolve();
}
process.exit(); // an aborted script may have left timers and connections open
