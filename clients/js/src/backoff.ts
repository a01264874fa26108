/** The waits between attempts, in milliseconds. */
export interface Backoff {
  /** Limit of the wait before the first repetition; doubled for each further one. */
  base: number;
  /** Limit of every wait. */
  cap: number;
  /** Returns numbers from 0 to 1, which are multiplied by the limit. Tests replace it. */
  random: () => number;
}

export const BACKOFF: Backoff = { base: 500, cap: 30_000, random: Math.random };

/** A wait with full jitter, so that clients that were disconnected together do not return together. */
export function jittered({ base, cap, random }: Backoff, attempt: number): number {
  return random() * Math.min(cap, base * 2 ** attempt);
}

/** setTimeout, with longer times cut down to 24 days: setTimeout itself would run them at once. */
export function after(milliseconds: number, run: () => void): ReturnType<typeof setTimeout> {
  return setTimeout(run, Math.min(Math.max(0, milliseconds), 2 ** 31 - 1));
}
