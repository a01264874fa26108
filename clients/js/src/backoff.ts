/** How long to wait between attempts, in milliseconds. */
export interface Backoff {
  /** The longest wait before the first further attempt; it doubles with each. */
  base: number;
  /** The longest wait of all. */
  cap: number;
  /** Numbers from 0 to 1, of which the wait is made. For tests. */
  random: () => number;
}

export const BACKOFF: Backoff = { base: 500, cap: 30_000, random: Math.random };

/** Full jitter: anything up to the limit, so that clients that were lost together do not come back together. */
export function jittered({ base, cap, random }: Backoff, attempt: number): number {
  return random() * Math.min(cap, base * 2 ** attempt);
}

/** setTimeout, for longer than it can count (24 days), too. */
export function after(milliseconds: number, run: () => void): ReturnType<typeof setTimeout> {
  return setTimeout(run, Math.min(Math.max(0, milliseconds), 2 ** 31 - 1));
}
