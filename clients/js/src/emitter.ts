/** Listeners by name. One that throws is reported as an uncaught error, and keeps nobody else from being told. */
export class Emitter<Events extends object> {
  readonly #listeners = new Map<keyof Events, Set<(value: never) => void>>();

  /** Call `listener` from now on; the result ends that. */
  on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners);
    // A function of its own for every call, so that a listener can be added twice and removed once.
    const entry = (value: Events[Name]) => listener(value);
    listeners.add(entry);
    return () => void listeners.delete(entry);
  }

  /** Tell everybody; whether there was anybody. */
  emit<Name extends keyof Events>(name: Name, value: Events[Name]): boolean {
    const listeners = [...(this.#listeners.get(name) ?? [])] as ((value: Events[Name]) => void)[];
    for (const listener of listeners) guarded(() => listener(value));
    return listeners.length > 0;
  }
}

/** Run an application's function; what it throws is the application's to see, not the client's to fail over. */
export function guarded(run: () => void): void {
  try {
    run();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
