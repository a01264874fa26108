// The entry nuropb-gateway-client/json: integers of 64 bits, and bytes, in calls and events.

import { TAG, decodeBase64, encodeBase64 } from "./base64.js";
import { checkParams } from "./checks.js";
import { isObject } from "./objects.js";

/** The options `parse` and `stringify` of a client. */
export interface Json {
  parse: (text: string) => unknown;
  stringify: (value: object) => string;
}

export interface JsonOptions {
  /** Integers beyond 2^53 are BigInt, in both directions. Other numbers stay as they are. Default: false. */
  bigint?: boolean | undefined;
  /**
   * Buffers and views of buffers are sent as `{"$bytes": "<base64>"}`, and such objects arrive as Uint8Array. Default:
   * false.
   */
  bytes?: boolean | undefined;
}

/** The least integer that a gateway accepts, and the first one that is too large. */
const MIN = -(2n ** 63n);
const END = 2n ** 64n;
/** Levels that are searched for bytes and integers. More are a cycle, or too deep for any gateway. */
const MAX_LEVELS = 200;
/** A text, or a number, of JSON. */
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/**
 * Return options for `connect`: `connect(url, { getToken, ...json({ bigint: true, bytes: true }) })`.
 *
 * `stringify` throws a TypeError that names the path of a value that is not JSON, and a RangeError for an integer that
 * does not fit 64 bits.
 */
export function json({ bigint = false, bytes = false }: JsonOptions = {}): Json {
  return {
    parse(text) {
      // Almost no text has a number that long.
      const isLong = bigint && /\d{16}/.test(text);
      if (!isLong && !(bytes && text.includes(TAG))) return JSON.parse(text);
      const mark = newMark();
      const marked = isLong ? text.replace(TOKEN, (token) => (isBig(token) ? `"${mark}${token}"` : token)) : text;
      return JSON.parse(marked, (_, value: unknown) => {
        if (typeof value === "string" && value.startsWith(mark)) return BigInt(value.slice(mark.length));
        return (bytes && isObject(value) && bytesOf(value)) || value;
      });
    },
    stringify(value) {
      const mark = newMark();
      const copy = plain(value, { mark, bigint, bytes }, "params", 0);
      checkParams(copy as object, MAX_LEVELS);
      return JSON.stringify(copy).replace(new RegExp(`"${mark}(-?\\d+)"`, "g"), "$1");
    },
  };
}

/** Texts that begin with it are integers. It is new each time, so nobody can send one. */
function newMark(): string {
  return `${Math.random()}${Math.random()}n`;
}

function isBig(token: string): boolean {
  return /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token));
}

function bytesOf(value: Record<string, unknown>): Uint8Array | null {
  const text = value[TAG];
  return typeof text === "string" && Object.keys(value).length === 1 ? decodeBase64(text) : null;
}

type Ways = { mark: string; bigint: boolean; bytes: boolean };

/** Return a value with tags in the place of bytes, and marks in the place of BigInts. */
function plain(value: unknown, ways: Ways, path: string, level: number): unknown {
  if (typeof value === "bigint" && ways.bigint) {
    if (value < MIN || value >= END) throw new RangeError(`${path}: an integer that does not fit 64 bits`);
    return `${ways.mark}${value}`;
  }
  if (typeof value !== "object" || value === null || level > MAX_LEVELS) return value;
  if (ways.bytes && value instanceof ArrayBuffer) return { [TAG]: encodeBase64(new Uint8Array(value)) };
  if (ways.bytes && ArrayBuffer.isView(value)) {
    return { [TAG]: encodeBase64(new Uint8Array(value.buffer, value.byteOffset, value.byteLength)) };
  }
  if (Array.isArray(value)) return value.map((each, index) => plain(each, ways, `${path}[${index}]`, level + 1));
  if (Object.prototype.toString.call(value) !== "[object Object]" || "toJSON" in value) return value;
  const members = Object.entries(value).map(([name, each]) => [name, plain(each, ways, `${path}.${name}`, level + 1)]);
  return Object.fromEntries(members);
}
