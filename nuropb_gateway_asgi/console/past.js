/** The calls of a user, kept in the tab over a reload: without their results, and gone with the sign-out. */

/**
 * @typedef {import("./session.js").Call} Call
 * @typedef {import("./session.js").Problem} Problem
 * @typedef {{ at: number, service: string, method: string, kind: "request" | "command",
 *   params: Record<string, unknown>, ms: number, size: number, problem: Problem | null }} Past
 */

const KEY = "nuropb-gateway-console-calls";
/** Characters of a call that is kept, and of all of them. */
const MOST = { call: 10_000, all: 200_000 };

/**
 * Keep the calls that have ended, except those with a secret in them.
 * @param {string} user @param {readonly Call[]} calls @param {(text: string) => boolean} hasSecret
 */
export function keepCalls(user, calls, hasSecret) {
  let left = MOST.all;
  const kept = calls
    .filter((call) => call.ms !== null)
    .map(({ at, service, method, kind, params, ms, size, problem }) => ({ at: at.getTime(), service, method, kind, params, ms, size, problem }))
    .filter((call) => {
      const text = JSON.stringify(call);
      if (text.length > MOST.call || text.length > left || hasSecret(text)) return false;
      left -= text.length;
      return true;
    });
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ user, calls: kept }));
  } catch {
    // The storage is full or forbidden: then there is no history.
  }
}

/** The calls of this user before the reload, the newest first. @param {string} user @param {() => number} number @returns {Call[]} */
export function keptCalls(user, number) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "{}");
    if (kept.user !== user) {
      forgetCalls();
      return [];
    }
    return /** @type {Past[]} */ (kept.calls).map((call) => ({
      ...call,
      at: new Date(call.at),
      number: number(),
      startedAt: 0,
      result: undefined,
      isOld: true,
      abort: () => {},
    }));
  } catch {
    return [];
  }
}

export function forgetCalls() {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // Nothing can be kept either.
  }
}
