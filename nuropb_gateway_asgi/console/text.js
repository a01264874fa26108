/** Formatting: times, sizes, JSON. */

/** @param {number} ms */
export function duration(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

/** Roughly the remaining time. @param {number} seconds */
export function remaining(seconds) {
  if (seconds <= 0) return "expired";
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

/** @param {number} count */
export function bytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 1_000_000 ? `${(count / 1000).toFixed(1)} kB` : `${(count / 1_000_000).toFixed(1)} MB`;
}

/** The time of day, with milliseconds. @param {Date} at */
export function clock(at) {
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  const milliseconds = String(at.getMilliseconds()).padStart(3, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${milliseconds}`;
}

/** @param {unknown} value */
export function pretty(value) {
  return JSON.stringify(value, null, 2) ?? "null";
}

/** A value on one line. @param {unknown} value */
export function plain(value) {
  return typeof value === "string" ? value : (JSON.stringify(value) ?? "null");
}

/** The beginning of a text. Redact the text before: a token that is cut would not be found. @param {string} text @param {number} [length] */
export function short(text, length = 200) {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}

/** Longer texts are shown without colours, because every coloured word is an element. */
const COLOURED = 30_000;
const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(?:true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/**
 * Split JSON into pieces of one kind each: `key`, `string`, `number`, `word`, or "" for everything else.
 * @param {string} text
 * @returns {{ text: string, kind: string }[]}
 */
export function pieces(text) {
  if (text.length > COLOURED) return [{ text, kind: "" }];
  const found = [];
  let end = 0;
  for (const match of text.matchAll(TOKEN)) {
    if (match.index > end) found.push({ text: text.slice(end, match.index), kind: "" });
    end = match.index + match[0].length;
    if (match[1] === undefined) found.push({ text: match[0], kind: /[a-z]/.test(match[0][0] ?? "") ? "word" : "number" });
    else found.push({ text: match[1], kind: match[2] === undefined ? "string" : "key" });
    if (match[2] !== undefined) found.push({ text: match[2], kind: "" });
  }
  if (end < text.length) found.push({ text: text.slice(end), kind: "" });
  return found;
}

/**
 * The claims of a JSON web token, which are not encrypted, or null for any other token.
 * @param {string} token
 * @returns {Record<string, unknown> | null}
 */
export function claimsOf(token) {
  const part = token.split(".")[1];
  if (part === undefined || token.split(".").length !== 3) return null;
  try {
    const binary = atob(part.replaceAll("-", "+").replaceAll("_", "/"));
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(binary, (c) => c.charCodeAt(0))));
    return typeof claims === "object" && claims !== null && !Array.isArray(claims) ? claims : null;
  } catch {
    return null;
  }
}
