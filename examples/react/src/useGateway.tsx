/**
 * Hooks for a NuroPb gateway: copy this file into an application.
 *
 *     const { gateway, state } = useGateway("/gateway/ws", { getToken });
 *     const orders = useRequest<Order[]>(gateway, "orders", "mine");
 *     useEvents(gateway, "orders.*", () => orders.reload(), { onGap: () => orders.reload() });
 */

import { useCallback, useEffect, useEffectEvent, useState } from "react";
import { type Client, type ConnectOptions, type Gap, type GatewayEvent, type State, connect } from "nuropb-gateway-client";

/**
 * Connects while the component is mounted. Use it once in an application, and pass `gateway` down. `gateway` is null
 * before the first client, and the other hooks wait for it. Later changes of `options` have no effect on a client.
 */
export function useGateway(url: string, options: ConnectOptions): { gateway: Client | null; state: State | null } {
  const [gateway, setGateway] = useState<Client | null>(null);
  const [state, setState] = useState<State | null>(null);
  const start = useEffectEvent(() => connect(url, options));

  useEffect(() => {
    const client = start();
    setGateway(client);
    setState(client.state);
    const stop = client.on("state", setState);
    return () => {
      stop();
      client.close();
      setGateway(null);
    };
  }, [url]);
  return { gateway, state };
}

/**
 * Receives events while the component is mounted; `*` matches one word of a topic, `#` any number of words. Returns the
 * error that ended the subscription, for example a refusal, or null.
 */
export function useEvents<Event = unknown>(
  gateway: Client | null,
  topics: string | readonly string[],
  onEvent: (event: GatewayEvent<Event>) => void,
  options: { onGap?: (gap: Gap) => void } = {},
): Error | null {
  const [error, setError] = useState<Error | null>(null);
  // The latest callback is called, without a new subscription for every render.
  const event = useEffectEvent(onEvent);
  const gap = useEffectEvent((value: Gap) => options.onGap?.(value));
  const wanted = JSON.stringify(topics);

  useEffect(() => {
    if (gateway === null) return;
    setError(null);
    const subscription = gateway.subscribe<Event>(JSON.parse(wanted), (value) => event(value));
    subscription.on("gap", (value) => gap(value));
    subscription.on("ended", setError);
    subscription.ready.catch(() => {}); // "ended" reports it, too
    return () => subscription.unsubscribe();
  }, [gateway, wanted]);
  return error;
}

/** Receives the events of `topic` that are for this user. They need no subscription. */
export function useOwnEvents(gateway: Client | null, topic: string, onEvent: (event: GatewayEvent) => void): void {
  const event = useEffectEvent(onEvent);
  useEffect(() => gateway?.on("event", (value) => value.topic === topic && event(value)), [gateway, topic]);
}

/**
 * Calls a method without side effects, and again when its parameters change or `reload` is called. An outdated call is
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
    gateway
      .request<Result>(service, method, JSON.parse(sent), { signal: controller.signal, idempotent: true, retries: 3 })
      .then(
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
