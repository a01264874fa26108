// Hooks for React 18 and 19. The client is that of the main module, which a bundle has once.

import { useCallback, useEffect, useInsertionEffect, useRef, useState } from "react";
import { type Client, type ConnectOptions, type Gap, type GatewayEvent, type State, connect } from "./index.js";

/**
 * Connect while the component is mounted. Use it once in an application, and pass `gateway` down. `gateway` is null
 * before the first client, and the other hooks wait for it. Later changes of `options` have no effect on a client.
 *
 * With shared connections, pass `connect` of `nuropb-gateway-client/shared` among the options.
 */
export function useGateway(
  url: string,
  options: ConnectOptions & { connect?: typeof connect | undefined },
): { gateway: Client | null; state: State | null } {
  const [gateway, setGateway] = useState<Client | null>(null);
  const [state, setState] = useState<State | null>(null);
  const latest = useLatest(options);

  useEffect(() => {
    const { connect: make = connect, ...rest } = latest.current;
    const client = make(url, rest);
    setGateway(client);
    setState(client.state);
    const stop = client.on("state", setState);
    return () => {
      stop();
      client.close();
      setGateway(null);
    };
  }, [url, latest]);
  return { gateway, state };
}

/**
 * Receive events while the component is mounted; `*` matches one word of a topic, `#` any number of words. Returns the
 * error that ended the subscription, for example a refusal, or null.
 */
export function useEvents<Event = unknown>(
  gateway: Client | null,
  topics: string | readonly string[],
  onEvent: (event: GatewayEvent<Event>) => void,
  options: { onGap?: ((gap: Gap) => void) | undefined } = {},
): Error | null {
  const [error, setError] = useState<Error | null>(null);
  // The latest callbacks are called, without a new subscription for every render.
  const latest = useLatest({ onEvent, onGap: options.onGap });
  const wanted = JSON.stringify(topics);

  useEffect(() => {
    if (gateway === null) return;
    setError(null);
    const topics = JSON.parse(wanted) as string | string[];
    const subscription = gateway.subscribe<Event>(topics, (event) => latest.current.onEvent(event));
    subscription.on("gap", (gap) => latest.current.onGap?.(gap));
    subscription.on("ended", setError);
    subscription.ready.catch(() => {}); // "ended" reports it, too
    return () => subscription.unsubscribe();
  }, [gateway, wanted, latest]);
  return error;
}

/** Receive the events of `topic` that are for this user. They need no subscription. */
export function useOwnEvents<Event = unknown>(
  gateway: Client | null,
  topic: string,
  onEvent: (event: GatewayEvent<Event>) => void,
): void {
  const latest = useLatest(onEvent);
  useEffect(
    () => gateway?.on("event", (event) => event.topic === topic && latest.current(event as GatewayEvent<Event>)),
    [gateway, topic, latest],
  );
}

/**
 * Call a method without side effects, and again when its parameters change or `reload` is called. An outdated call is
 * cancelled; `result` keeps its value until the next one.
 */
export function useRequest<Result = unknown>(
  gateway: Client | null,
  service: string,
  method: string,
  params: object = {},
): { result: Result | undefined; error: Error | null; reload: () => void } {
  const [answer, setAnswer] = useState<{ result: Result | undefined; error: Error | null }>({
    result: undefined,
    error: null,
  });
  const [turn, setTurn] = useState(0);
  const sent = JSON.stringify(params);

  useEffect(() => {
    if (gateway === null) return;
    const controller = new AbortController();
    const options = { signal: controller.signal, idempotent: true, retries: 3 };
    gateway.request<Result>(service, method, JSON.parse(sent) as object, options).then(
      (result) => setAnswer({ result, error: null }),
      (error: Error) => {
        if (!controller.signal.aborted) setAnswer(({ result }) => ({ result, error }));
      },
    );
    return () => controller.abort();
  }, [gateway, service, method, sent, turn]);
  const reload = useCallback(() => setTurn((each) => each + 1), []);
  return { ...answer, reload };
}

/** A reference to the value of the last render. useEffectEvent, which does the same, is not in React 18. */
function useLatest<Value>(value: Value): { readonly current: Value } {
  const latest = useRef(value);
  useInsertionEffect(() => {
    latest.current = value;
  });
  return latest;
}
