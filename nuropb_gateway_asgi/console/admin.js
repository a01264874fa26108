/** The page of the admin API: processes, connections and circuits of the gateway, for who has the admin token. */
import { html, render, useEffect, useReducer, useState } from "./ui.js";

/**
 * @typedef {{ instance_id: string, ready: boolean, reasons: string[], version: string, in_flight: number,
 *   connections: Record<string, number> }} Process
 * @typedef {{ service: string, method: string, seconds: number }} Call
 * @typedef {{ session_id: string, user_id: string, username: string, address: string, transport: string,
 *   instance_id: string, connected: boolean, connected_at: number, topics: string[], topic_count: number,
 *   in_flight: number, calls: Call[] }} Connection
 * @typedef {{ service: string, transport: string, instance_id: string, open: boolean, timeouts: number }} Circuit
 * @typedef {{ user_id: string, instance_id: string, errors: number, refusals: number }} Budget
 * @typedef {{ processes: Process[], connections: Connection[], total: number, circuits: Circuit[], budgets: Budget[],
 *   missing: string[] }} State
 */

const needsToken = document.documentElement.dataset.token === "yes";
/** Milliseconds between two looks. */
const INTERVAL = 2000;

class Refused extends Error {}

/** @param {string} path @param {string} token @param {unknown} [body] @returns {Promise<any>} */
async function ask(path, token, body) {
  const response = await fetch(`v1/${path}`, {
    method: body === undefined ? "GET" : "POST",
    headers: {
      ...(token === "" ? {} : { Authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const answer = await response.json().catch(() => ({}));
  const text = answer.description ?? `The gateway answered with status ${response.status}.`;
  if (response.status === 401 || response.status === 429) throw new Refused(text);
  if (!response.ok) throw new Error(text);
  return answer;
}

/** @param {string} token @param {string} user @returns {Promise<State>} */
async function look(token, user) {
  const query = user === "" ? "" : `?user_id=${encodeURIComponent(user)}`;
  const status = await ask("status", token);
  const [{ connections, total, missing }, { circuits, budgets }] = await Promise.all([
    ask(`connections${query}`, token),
    ask("circuits", token),
  ]);
  return { processes: status.processes, connections, total, circuits, budgets, missing };
}

/** @param {unknown} error */
const said = (error) => (error instanceof Error ? error.message : String(error));

function App() {
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState("");
  const [isIn, enter] = useState(!needsToken);
  /** @param {string} given */
  const signIn = (given) => {
    setProblem("");
    ask("status", given).then(() => (setToken(given), enter(true)), (error) => setProblem(said(error)));
  };
  /** @param {string} why */
  const signOut = (why) => (setToken(""), setProblem(why), enter(!needsToken));
  return isIn
    ? html`<${Panel} token=${token} onRefused=${signOut} />`
    : html`<${SignIn} problem=${problem} onToken=${signIn} />`;
}

/** @param {{ problem: string, onToken: (token: string) => void }} props */
function SignIn({ problem, onToken }) {
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    onToken(/** @type {HTMLInputElement} */ (form.elements.namedItem("token")).value.trim());
  };
  return html`
    <main class="signin">
      <div class="signin-card">
        <h1>NuroPb Gateway Admin</h1>
        <p class="muted">For operators: connections, circuits, and the end of connections.</p>
        <form onSubmit=${submit} novalidate>
          <label for="token">Admin token</label>
          <input id="token" name="token" type="password" class="mono" autocomplete="off" spellcheck=${false} required
            aria-invalid=${problem !== ""} aria-describedby="problem" />
          <p id="problem" class="problem" role="alert">${problem}</p>
          <button type="submit" class="primary wide">Sign in</button>
        </form>
        <p class="hint">It is the value of <code>ADMIN_TOKEN</code>. It stays in this page, until you leave it.</p>
      </div>
    </main>`;
}

/** @param {{ token: string, onRefused: (why: string) => void }} props */
function Panel({ token, onRefused }) {
  const [state, setState] = useState(/** @type {State | null} */ (null));
  const [problem, setProblem] = useState("");
  const [user, setUser] = useState("");
  const [asked, again] = useReducer((/** @type {number} */ count) => count + 1, 0);
  useEffect(() => {
    let over = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const repeat = async () => {
      try {
        const found = await look(token, user);
        if (!over) setState(found), setProblem("");
      } catch (error) {
        if (!over && error instanceof Refused) return onRefused(said(error));
        if (!over) setProblem(said(error));
      }
      if (!over) timer = setTimeout(repeat, INTERVAL);
    };
    void repeat();
    return () => ((over = true), clearTimeout(timer));
  }, [token, user, asked]);
  /** @param {string} path @param {unknown} body */
  const act = (path, body) =>
    ask(path, token, body).then(
      () => (setProblem(""), again(undefined)),
      (error) => (error instanceof Refused ? onRefused(said(error)) : setProblem(said(error))),
    );
  return html`
    <main class="admin">
      <h1>NuroPb Gateway Admin</h1>
      <p class="problem" role="alert">${problem}</p>
      ${state === null ? html`<p class="loading">Loading…</p>` : html`
        <${Processes} state=${state} />
        <${Connections} state=${state} user=${user} onUser=${setUser} onAct=${act} />
        <${Circuits} state=${state} onAct=${act} />`}
    </main>`;
}

/** @param {{ state: State }} props */
function Processes({ state }) {
  return html`
    <section class="card" aria-labelledby="processes-title">
      <div class="head"><h2 id="processes-title">Processes <span class="count">${state.processes.length}</span></h2></div>
      ${state.missing.length > 0 && html`<p class="problem">No answer from ${state.missing.join(", ")}</p>`}
      <ul class="rows" aria-label="Processes">
        ${state.processes.map((each) => html`
          <li key=${each.instance_id} class="row">
            <code class="ellipsis grow">${each.instance_id}</code>
            <span class="muted">${Object.entries(each.connections).map(([kind, count]) => `${count} ${kind}`).join(", ")}</span>
            <span class="muted">${each.in_flight} in flight</span>
            <span class="badge ${each.ready ? "good" : "warn"}">${each.ready ? "ready" : each.reasons.join("; ")}</span>
          </li>`)}
      </ul>
    </section>`;
}

/** @typedef {(path: string, body: unknown) => void} Act */

/** @param {{ state: State, user: string, onUser: (user: string) => void, onAct: Act }} props */
function Connections({ state, user, onUser, onAct }) {
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    onUser(/** @type {HTMLInputElement} */ (form.elements.namedItem("user")).value.trim());
  };
  return html`
    <section class="card" aria-labelledby="connections-title">
      <div class="head">
        <h2 id="connections-title">Connections <span class="count">${state.total}</span></h2>
        <form class="filter" onSubmit=${submit}>
          <label>User <input type="search" name="user" size="16" autocomplete="off" defaultValue=${user} /></label>
          <button type="submit" class="small">Show</button>
        </form>
      </div>
      ${state.connections.length < state.total && html`
        <p class="muted">The oldest ${state.connections.length} are listed; name a user to see others.</p>`}
      <ul class="rows" aria-label="Connections">
        ${state.connections.map((each) => html`
          <li key=${each.session_id} class="row">
            <span class="grow">
              <b>${each.user_id}</b> <span class="muted">${each.transport} ${each.address}, since${" "}
              ${new Date(each.connected_at * 1000).toLocaleString()}${each.connected ? "" : ", without a connection"}</span><br />
              <code class="muted">${each.topics.join(" ") || "no topics"}${each.topic_count > each.topics.length
                ? ` and ${each.topic_count - each.topics.length} more` : ""}</code>
              ${each.calls.map((call) => html`<br key=${call.service} /><code>${call.service}.${call.method}</code>
                <span class="muted"> for ${call.seconds.toFixed(1)} s</span>`)}
            </span>
            <button type="button" class="small" aria-label="Disconnect ${each.user_id}, session ${each.session_id}"
              onClick=${() => onAct("disconnect", { session_id: each.session_id })}>Disconnect</button>
          </li>`)}
      </ul>
      ${state.total === 0 && html`<p class="empty">Nobody is connected.</p>`}
    </section>`;
}

/** @param {{ state: State, onAct: Act }} props */
function Circuits({ state, onAct }) {
  return html`
    <section class="card" aria-labelledby="circuits-title">
      <div class="head">
        <h2 id="circuits-title">Circuits and budgets</h2>
        <button type="button" class="small" onClick=${() => onAct("reset", {})}>Reset all</button>
      </div>
      <ul class="rows" aria-label="Circuits">
        ${state.circuits.map((each) => html`
          <li key=${each.service + each.instance_id + each.transport} class="row">
            <code class="ellipsis grow">${each.service}</code>
            <span class="muted">${each.timeouts} timeouts, ${each.transport}</span>
            <span class="badge ${each.open ? "warn" : ""}">${each.open ? "open" : "closed"}</span>
            <button type="button" class="small" aria-label="Reset ${each.service}"
              onClick=${() => onAct("reset", { service: each.service })}>Reset</button>
          </li>`)}
        ${state.budgets.map((each) => html`
          <li key=${each.user_id + each.instance_id} class="row">
            <b class="ellipsis grow">${each.user_id}</b>
            <span class="muted">${each.errors} failed calls, ${each.refusals} refused</span>
            <button type="button" class="small" aria-label="Reset ${each.user_id}"
              onClick=${() => onAct("reset", { user_id: each.user_id })}>Reset</button>
          </li>`)}
      </ul>
      ${state.circuits.length + state.budgets.length === 0 && html`<p class="empty">All services answer.</p>`}
    </section>`;
}

const root = /** @type {HTMLElement} */ (document.getElementById("app"));
root.textContent = "";
render(html`<${App} />`, root);
