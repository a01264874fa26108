import { type FormEvent, StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import type { Client } from "nuropb-gateway-client";
import { useEvents, useGateway, useOwnEvents, useRequest } from "nuropb-gateway-client/react";

interface Order {
  number: number;
  item: string;
  quantity: number;
  shipped: boolean;
}

async function fetchToken(name: string): Promise<string> {
  const response = await fetch("/sign-in", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name }),
  });
  if (!response.ok) throw new Error(`no token: ${response.status}`);
  return (await response.json()).token;
}

function SignIn({ onName }: { onName: (name: string) => void }) {
  const submit = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    onName(String(new FormData(event.currentTarget).get("name")));
  };
  return (
    <form id="sign-in" onSubmit={submit}>
      <label>
        Your name <input name="name" required />
      </label>
      <button>Sign in</button>
    </form>
  );
}

function Application({ name }: { name: string }) {
  const { gateway, state } = useGateway("/gateway/ws", { getToken: () => fetchToken(name) });
  return (
    <main>
      <p>
        You are <b>{name}</b>. <span role="status">{state?.name}</span>
      </p>
      <Orders gateway={gateway} />
      <Feed gateway={gateway} />
    </main>
  );
}

function Orders({ gateway }: { gateway: Client | null }) {
  const { result: orders = [], error, reload } = useRequest<Order[]>(gateway, "orders", "mine");
  const [failure, setFailure] = useState<string | null>(null);
  useOwnEvents(gateway, "orders.shipped", reload);

  const create = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = event.currentTarget;
    const data = new FormData(form);
    try {
      await gateway?.request("orders", "create", { item: data.get("item"), quantity: Number(data.get("quantity")) });
      form.reset();
      setFailure(null);
      reload();
    } catch (error) {
      setFailure((error as Error).message);
    }
  };
  const ship = (number: number) =>
    gateway?.command("orders", "ship", { number }).catch((error: Error) => setFailure(error.message));
  return (
    <>
      <form id="create" onSubmit={create}>
        <label>
          Item <input name="item" required />
        </label>
        <label>
          Quantity <input name="quantity" type="number" defaultValue={1} />
        </label>
        <button>Order</button>
      </form>
      <p role="alert">{failure ?? error?.message}</p>
      <ul id="mine">
        {orders.map(({ number, item, quantity, shipped }) => (
          <li key={number}>
            {number}: {quantity} × {item} {shipped ? "(shipped)" : <button onClick={() => ship(number)}>Ship</button>}
          </li>
        ))}
      </ul>
    </>
  );
}

function Feed({ gateway }: { gateway: Client | null }) {
  const [created, setCreated] = useState<Order[]>([]);
  const ended = useEvents<Order>(gateway, "orders.created", ({ event }) =>
    setCreated((earlier) => [event, ...earlier].slice(0, 20)),
  );
  return (
    <>
      <h2>What everybody orders</h2>
      {ended && <p role="alert">{ended.message}</p>}
      <ul id="created">
        {created.map(({ number, item, quantity }) => (
          <li key={number}>
            {quantity} × {item}
          </li>
        ))}
      </ul>
    </>
  );
}

function Page() {
  const [name, setName] = useState<string | null>(null);
  return (
    <>
      <h1>Orders</h1>
      {name === null ? <SignIn onName={setName} /> : <Application name={name} />}
    </>
  );
}

createRoot(document.body).render(
  <StrictMode>
    <Page />
  </StrictMode>,
);
