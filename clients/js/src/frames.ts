import { LIMITS } from "./calls.js";
import { isObject } from "./objects.js";
import type { Hello } from "./types.js";

/** A message of the protocol. */
export type Frame = Record<string, unknown>;

/** Milliseconds of silence after which the gateway is pinged, unless options or gateway name a shorter time. */
export const MAX_PING_INTERVAL = 30_000;

/** Whether a frame is among those that client and gateway count in a resumable session. */
export function isCounted({ type, payload }: Frame): boolean {
  if (type !== "event") return type === "response" || type === "error";
  const topic = isObject(payload) ? payload.topic : undefined;
  return topic !== "hello" && topic !== "goodbye" && topic !== "closed";
}

export function idOf({ payload }: Frame): unknown {
  return isObject(payload) ? payload.id : undefined;
}

export function texts(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

export function parse(data: unknown, read: (text: string) => unknown = JSON.parse): Frame | null {
  if (typeof data !== "string") return null;
  try {
    const frame = read(data);
    return isObject(frame) ? frame : null;
  } catch {
    return null;
  }
}

/** Read a hello. Missing and invalid members get their defaults. */
export function sound(event: unknown): Hello {
  const given = isObject(event) ? event : {};
  const limits = isObject(given.limits) ? given.limits : {};
  const positive = (value: unknown, usual: number) => (typeof value === "number" && value > 0 ? value : usual);
  const text = (value: unknown) => (typeof value === "string" ? value : "");
  return {
    session_id: text(given.session_id),
    user_id: text(given.user_id),
    username: text(given.username),
    protocol: text(given.protocol),
    instance_id: text(given.instance_id),
    expires_at: typeof given.expires_at === "number" ? given.expires_at : null,
    resume: given.resume === true,
    limits: {
      max_message_size: positive(limits.max_message_size, LIMITS.maxMessageSize),
      max_in_flight: positive(limits.max_in_flight, LIMITS.maxInFlight),
      request_timeout: positive(limits.request_timeout, LIMITS.requestTimeout / 1000),
      ping_interval: positive(limits.ping_interval, MAX_PING_INTERVAL / 1000),
    },
  };
}
