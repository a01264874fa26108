/** Listeners by name. An exception in one is reported as an uncaught error; the others are still called. */
export class Emitter<Events extends object> {
  readonly #listeners = new Map<keyof Events, Set<(value: never) => void>>();

  /** Call `listener` for every `name` from now on. Returns a function that removes it. */
  on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners);
    // A function for each call of on(), so that a listener added twice can be removed once.
    const entry = (value: Events[Name]) => listener(value);
    listeners.add(entry);
    return () => void listeners.delete(entry);
  }

  /** Call the listeners of `name`. Returns whether there were any. */
  emit<Name extends keyof Events>(name: Name, value: Events[Name]): boolean {
    const listeners = [...(this.#listeners.get(name) ?? [])] as ((value: Events[Name]) => void)[];
    for (const listener of listeners) guarded(() => listener(value));
    return listeners.length > 0;
  }
}

/** Run an application's function. Its exceptions are reported as uncaught errors, and do not reach the client. */
export function guarded(run: () => void): void {
  try {
    run();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
