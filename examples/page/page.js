// A page without a build step. The gateway serves the client.

import { connect } from "/gateway/client.js";

const $ = (selector) => document.querySelector(selector);
let gateway;

async function fetchToken(name) {
  const response = await fetch("/sign-in", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name }),
  });
  if (!response.ok) throw new Error(`no token: ${response.status}`);
  return (await response.json()).token;
}

function line(text, ...more) {
  const item = document.createElement("li");
  item.append(text, ...more);
  return item;
}

/** Run an action, and show its error. */
async function attempt(action) {
  $("#error").textContent = "";
  try {
    await action();
  } catch (error) {
    $("#error").textContent = error.message;
  }
}

async function showMine() {
  const orders = await gateway.request("orders", "mine", {}, { idempotent: true });
  $("#mine").replaceChildren(
    ...orders.map(({ number, item, quantity, shipped }) => {
      const text = `${number}: ${quantity} × ${item} `;
      if (shipped) return line(text, "(shipped)");
      const button = document.createElement("button");
      button.textContent = "Ship";
      button.onclick = () => attempt(() => gateway.command("orders", "ship", { number }));
      return line(text, button);
    }),
  );
}

$("#sign-in").onsubmit = (event) => {
  event.preventDefault();
  const name = new FormData(event.target).get("name");
  gateway = connect("/gateway/ws", { getToken: () => fetchToken(name) });
  gateway.on("state", (state) => {
    $("#state").textContent = state.name;
    if (state.name === "open") $("#who").textContent = state.hello.username;
  });
  // Events for this user need no subscription. They reach all tabs and devices of the user.
  gateway.on("event", ({ topic }) => topic === "orders.shipped" && attempt(showMine));
  const created = gateway.subscribe("orders.created", ({ event: { item, quantity } }) =>
    $("#created").prepend(line(`${quantity} × ${item}`)),
  );
  // Events may have been missed: fetch the orders again.
  created.on("gap", () => attempt(showMine));
  $("#sign-in").hidden = true;
  $("main").hidden = false;
  attempt(showMine);
};

$("#create").onsubmit = (event) => {
  event.preventDefault();
  const form = event.target;
  const data = new FormData(form);
  attempt(async () => {
    await gateway.request("orders", "create", { item: data.get("item"), quantity: Number(data.get("quantity")) });
    form.reset();
    await showMine();
  });
};
