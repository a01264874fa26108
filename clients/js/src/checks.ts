import { isObject } from "./objects.js";

// Values that no gateway accepts fail before they are sent: at the gateway, several of them would end the connection.

/** The gateway's limits, in characters, words and levels of JSON. */
const MAX_NAME = 255;
const MAX_TRACE_ID = 128;
const MAX_KEY = 64;
const MAX_TOPICS = 100;
const MAX_WORDS = 32;
const MAX_HASHES = 2;
/** Half of a pair, which UTF-8 cannot encode. */
const SURROGATE = /\p{Surrogate}/u;
const UNPRINTABLE = /[\p{Cc}\p{Surrogate}\p{Zl}\p{Zp}]/u;

/**
 * Throw a TypeError or a RangeError unless `params` are an object of JSON values, of at most `levels` levels. The error
 * names the path of the value.
 */
export function checkParams(params: object, levels: number): void {
  if (!isObject(params)) throw new TypeError("params must be an object: its members are the method's arguments");
  checkValue(params, "params", [], levels);
}

function checkValue(value: unknown, path: string, parents: object[], levels: number): void {
  if (typeof value === "string") {
    if (SURROGATE.test(value)) throw new TypeError(`${path}: a text with half of a character (a lone surrogate)`);
  } else if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new TypeError(`${path}: JSON has no ${value}`);
  } else if (typeof value === "bigint") {
    throw new TypeError(`Do not know how to serialize a BigInt: ${path}`);
  } else if (typeof value === "function" || typeof value === "symbol") {
    throw new TypeError(`${path}: JSON has no ${typeof value}`);
  } else if (typeof value === "object" && value !== null) {
    checkObject(value, path, parents, levels);
  }
}

function checkObject(value: object, path: string, parents: object[], levels: number): void {
  if (parents.includes(value)) throw new TypeError(`${path}: an object that contains itself`);
  if (parents.length >= levels) throw new RangeError(`${path}: nested more than ${levels} levels deep`);
  const kind = Object.prototype.toString.call(value).slice(8, -1);
  const { toJSON } = value as { toJSON?: (key: string) => unknown };
  if (ArrayBuffer.isView(value)) throw new TypeError(`${path}: JSON has no ${kind}; encode the bytes as text`);
  if (typeof toJSON === "function") {
    if (kind === "Date" && Number.isNaN(Number(value))) throw new TypeError(`${path}: an invalid Date`);
    checkValue(toJSON.call(value, ""), path, [...parents, value], levels);
    return;
  }
  parents.push(value);
  if (Array.isArray(value)) {
    for (const [index, each] of value.entries()) checkValue(each, `${path}[${index}]`, parents, levels);
  } else if (kind === "Object") {
    for (const [name, each] of Object.entries(value)) {
      checkValue(name, path, parents, levels);
      checkValue(each, `${path}.${name}`, parents, levels);
    }
  } else if (kind !== "String" && kind !== "Number" && kind !== "Boolean") {
    throw new TypeError(`${path}: JSON has no ${kind}`);
  }
  parents.pop();
}

/** Return the names of a service and a method. Throws a TypeError unless they can be those of a call. */
export function checkNames(service: unknown, method: unknown): object {
  checkService(service);
  if (typeof method !== "string" || !/^[A-Za-z_]\w*$/.test(method) || method.length > MAX_NAME) {
    throw new TypeError(`method must be a name of at most ${MAX_NAME} ASCII letters, digits and underscores`);
  }
  return { service, method };
}

export function checkService(service: unknown): void {
  if (typeof service !== "string" || !/^[!-~]+$/.test(service) || service.length > MAX_NAME) {
    throw new TypeError(`service must be 1 to ${MAX_NAME} printable ASCII characters without spaces`);
  }
}

/** Throw a TypeError unless a trace id and an idempotency key, where they are given, can be sent. */
export function checkIds(traceId: unknown, key: unknown): void {
  if (
    traceId !== undefined &&
    !(typeof traceId === "string" && !UNPRINTABLE.test(traceId) && [...traceId].length <= MAX_TRACE_ID)
  ) {
    throw new TypeError(`traceId must be at most ${MAX_TRACE_ID} printable characters`);
  }
  if (key !== undefined && !(typeof key === "string" && /^[ -~]+$/.test(key) && key.length <= MAX_KEY)) {
    throw new TypeError(`idempotencyKey must be 1 to ${MAX_KEY} printable ASCII characters`);
  }
}

/** Throw a TypeError unless all `topics` can be subscribed to. */
export function checkTopics(topics: readonly unknown[]): void {
  if (topics.length === 0) throw new TypeError("topics is empty: name at least one topic");
  if (topics.length > MAX_TOPICS) throw new TypeError(`topics has more than ${MAX_TOPICS} members`);
  for (const [index, topic] of topics.entries()) {
    const problem = typeof topic === "string" ? problemOf(topic) : "not a string";
    if (problem !== null) throw new TypeError(`topics[${index}]: ${problem}`);
  }
}

function problemOf(topic: string): string | null {
  const words = topic.split(".");
  if (topic === "" || UNPRINTABLE.test(topic)) return "empty, or with characters that cannot be printed";
  if (new TextEncoder().encode(topic).length > MAX_NAME) return `longer than ${MAX_NAME} bytes`;
  if (words.length > MAX_WORDS) return `more than ${MAX_WORDS} words`;
  if (words.filter((word) => word === "#").length > MAX_HASHES) return `more than ${MAX_HASHES} # words`;
  if (words.some((word) => word.length > 1 && /[*#]/.test(word))) return "a word that mixes * or # with other characters";
  return null;
}
