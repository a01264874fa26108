/** Sign-in, header, notices and layout. */
import { Agents } from "./agents.js";
import { CallPanel, Services } from "./call.js";
import { Faults, hasFaults } from "./faults.js";
import { onFragmentToken } from "./fragment.js";
import { forgetCalls } from "./past.js";
import { Session, messageOf } from "./session.js";
import { claimsOf, pretty, remaining } from "./text.js";
import { THEMES, chooseTheme, chosenTheme } from "./theme.js";
import { Chart, Events, Frames } from "./traffic.js";
import { Json, html, useEffect, useId, useLayoutEffect, useReducer, useRef, useState } from "./ui.js";

/** @typedef {import("./session.js").Wanted} Wanted */

const { socket = "ws", development } = document.documentElement.dataset;
const KEY = "nuropb-gateway-console-token";

/** A token that outlives a reload, but not the tab. */
const kept = {
  get: () => sessionStorage.getItem(KEY),
  /** @param {string} token */
  set: (token) => sessionStorage.setItem(KEY, token),
  drop: () => sessionStorage.removeItem(KEY),
};

/** Render again after every change of the session. @param {Session | null} session */
function useChanges(session) {
  const [, again] = useReducer((/** @type {number} */ count) => count + 1, 0);
  useLayoutEffect(() => session?.listen(() => again(undefined)), [session]);
}

export function App() {
  const [session, setSession] = useState(/** @type {Session | null} */ (null));
  const [problem, setProblem] = useState("");
  useChanges(session);

  /** @param {string} token @param {boolean} keep */
  const signIn = (token, keep) => {
    if (keep) kept.set(token);
    else kept.drop();
    setProblem("");
    setSession((before) => {
      before?.close();
      return new Session(new URL(socket, location.href), token);
    });
  };
  const signOut = (why = "") => {
    kept.drop();
    forgetCalls();
    session?.close();
    setSession(null);
    setProblem(why);
  };
  useEffect(() => {
    const token = kept.get();
    if (token !== null) signIn(token, true);
    onFragmentToken((each) => signIn(each, true));
  }, []);

  const successor = session?.successor ?? null;
  useEffect(() => {
    if (successor !== null) signIn(successor, kept.get() !== null);
  }, [successor]);

  const isRefused = session !== null && !session.hasOpened && session.state.name === "closed";
  useEffect(() => {
    if (isRefused) signOut(session.failure || "The gateway has closed the connection.");
  }, [isRefused]);

  if (session === null || !session.hasOpened) {
    return html`<${SignIn} problem=${session?.failure || problem} session=${session} onSignIn=${signIn} onCancel=${() => signOut()} />`;
  }
  return html`<${Console} session=${session} onSignOut=${() => signOut()} />`;
}

// --- signing in -----------------------------------------------------------------------------------------------------

/** @param {{ problem: string, session: Session | null, onSignIn: (token: string, keep: boolean) => void, onCancel: () => void }} props */
function SignIn({ problem, session, onSignIn, onCancel }) {
  const [keep, setKeep] = useState(false);
  const busy = session !== null;
  return html`
    <main class="signin">
      <div class="signin-card">
        <${Logo} size="44" />
        <h1>NuroPb Gateway</h1>
        <p class="muted">Call the services of the mesh and watch its events, as a browser does.</p>
        <${TokenForm} label="Token" action=${busy ? "Signing in…" : "Sign in"} busy=${busy} problem=${problem}
          onToken=${(/** @type {string} */ token) => onSignIn(token, keep)}>
          <label class="check">
            <input type="checkbox" checked=${keep} onChange=${() => setKeep(!keep)} />
            Stay signed in until this tab is closed
          </label>
        <//>
        ${busy && html`<button type="button" class="quiet" onClick=${onCancel}>Cancel</button>`}
        <p class="hint">
          ${development === "yes"
            ? html`<code>make run</code> prints a token, and a link that signs you in.`
            : html`Use a token as your applications use it. It stays in this tab.`}
        </p>
        ${problem && session !== null && session.state.name !== "closed" && html`
          <p class="hint">If the gateway is running, its <code>ALLOWED_ORIGINS</code> may lack the origin of
          this page: <code>${location.origin}</code></p>`}
      </div>
    </main>`;
}

/**
 * @param {{ label: string, action: string, busy?: boolean, problem: string, onToken: (token: string) => void,
 *   children?: unknown }} props
 */
function TokenForm({ label, action, busy = false, problem, onToken, children }) {
  const [missing, setMissing] = useState(false);
  const id = useId();
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useLayoutEffect(() => input.current?.focus(), []);
  const said = missing ? "Paste a token first." : problem;
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const token = (input.current?.value ?? "").trim().replace(/^bearer\s+/i, "");
    setMissing(token === "");
    if (token !== "") onToken(token);
    else input.current?.focus();
  };
  return html`
    <form onSubmit=${submit} novalidate>
      <label for=${id}>${label}</label>
      <input id=${id} ref=${input} type="password" class="mono" autocomplete="off" spellcheck=${false} required
        placeholder="eyJhbGciOi…" aria-invalid=${said !== ""} aria-describedby="${id}-problem" />
      <p id="${id}-problem" class="problem" role="alert">${said}</p>
      ${children}
      <button type="submit" class="primary wide" disabled=${busy}>${action}</button>
    </form>`;
}

// --- signed in ------------------------------------------------------------------------------------------------------

const VIEWS = /** @type {const} */ ([
  ["call", "Call"],
  ["events", "Events"],
  ["traffic", "Traffic"],
  ["agents", "Agents"],
]);

const FAULTS = /** @type {const} */ (["faults", "Faults"]);

/** @param {{ session: Session, onSignOut: () => void }} props */
function Console({ session, onSignOut }) {
  const [view, setView] = useState("call");
  const [chosen, choose] = useState(/** @type {{ service: string, method: string } | null} */ (null));
  const services = session.description?.services ?? {};
  // Choose the first method, so that a person can try something at once.
  useEffect(() => {
    const service = Object.keys(services).find((name) => Object.keys(services[name]?.methods ?? {}).length > 0);
    const method = service === undefined ? undefined : Object.keys(services[service]?.methods ?? {})[0];
    if (chosen === null && service !== undefined && method !== undefined) choose({ service, method });
  }, [session.description]);
  const unread = session.events.length;
  return html`
    <a class="skip" href="#work" onClick=${skip}>Skip to the form</a>
    <${Header} session=${session} onSignOut=${onSignOut} />
    <${Notices} session=${session} onSignOut=${onSignOut} />
    <nav class="views" aria-label="Parts of the console">
      ${[...VIEWS, ...(hasFaults ? [FAULTS] : [])].map(([name, label]) => html`
        <button type="button" data-view=${name} aria-current=${view === name ? "page" : undefined}
          onClick=${() => setView(name)}>
          ${name === "call" ? html`<span class="narrow">Call</span><span class="wide">Services</span>` : label}${name === "events" && unread > 0 && html` <span class="count">${unread}</span>`}
        </button>`)}
    </nav>
    <main class="console" data-view=${view}>
      <${Services} session=${session} chosen=${chosen} onChoose=${choose} />
      <div class="work" id="work" tabindex="-1">
        <${CallPanel} session=${session} chosen=${chosen} onChoose=${choose} />
        <${Events} session=${session} />
      </div>
      <div class="traffic">
        <${Chart} session=${session} />
        <${Frames} session=${session} />
      </div>
      ${view === "agents" && html`<${Agents} session=${session} />`}
      ${view === "faults" && html`<${Faults} session=${session} />`}
    </main>`;
}

/** Move the focus without changing the fragment, which is for tokens. @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("work")?.focus();
}

/** @param {{ session: Session, onSignOut: () => void }} props */
function Header({ session, onSignOut }) {
  const [open, setOpen] = useState(false);
  const button = useRef(/** @type {HTMLElement | null} */ (null));
  const close = () => {
    setOpen(false);
    button.current?.focus();
  };
  const hello = session.hello;
  const expiresAt = hello?.expires_at ?? null;
  const left = expiresAt === null ? null : expiresAt - Date.now() / 1000;
  return html`
    <header class="top">
      <div class="brand"><${Logo} size="26" /><h1>NuroPb Gateway <span>Console</span></h1></div>
      <${Connection} session=${session} />
      <div class="who">
        <button type="button" class="identity" ref=${button} aria-expanded=${open} aria-controls="identity"
          onClick=${() => setOpen(!open)}>
          <span class="unseen">Signed in as ${hello?.username}</span>
          <span class="avatar" aria-hidden="true">${(hello?.username || "?").slice(0, 1).toUpperCase()}</span>
          <span class="name" aria-hidden="true">${hello?.username}</span>
          ${left !== null && html`<span class="expiry ${left < 60 ? "soon" : ""}" aria-hidden="true">token: ${remaining(left)}</span>`}
          <span class="caret" aria-hidden="true">▾</span>
        </button>
        <button type="button" class="quiet" onClick=${onSignOut}>Sign out</button>
      </div>
      ${open && html`<${Identity} session=${session} onClose=${() => setOpen(false)} onLeave=${close} onSignOut=${onSignOut} />`}
    </header>`;
}

/** @param {{ session: Session }} props */
function Connection({ session }) {
  const { state } = session;
  const seconds = (Date.now() - session.since) / 1000;
  let text = "";
  if (state.name === "open") text = session.isDraining ? "The gateway stops" : "Connected";
  else if (state.name === "connecting") text = session.wanted ? "Waiting for a token" : "Connecting…";
  else if (state.name === "authorising") text = "Checking the token…";
  else if (state.name === "reconnecting") text = `Reconnecting in ${Math.max(0, Math.ceil(state.delay / 1000 - seconds))} s`;
  else text = "Disconnected";
  // A screen reader would read a countdown every second.
  const said = state.name === "reconnecting" ? "Connection lost, reconnecting" : text;
  return html`
    <p class="state" data-state=${state.name === "open" && session.isDraining ? "draining" : state.name} title=${session.url}>
      <span class="dot" aria-hidden="true"></span><span aria-hidden="true">${text}</span>
      <span class="unseen" role="status">${said}</span>
    </p>`;
}

/** @param {{ session: Session, onClose: () => void, onLeave: () => void, onSignOut: () => void }} props */
function Identity({ session, onClose, onLeave, onSignOut }) {
  const hello = session.hello;
  const claims = claimsOf(session.token);
  const panel = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => {
    panel.current?.focus();
    /** @param {Event} event */
    const elsewhere = ({ target }) => {
      if (target instanceof Element && target.closest(".identity, .identity-panel") === null) onClose();
    };
    document.addEventListener("pointerdown", elsewhere);
    return () => document.removeEventListener("pointerdown", elsewhere);
  }, []);
  const rows = [
    ["User", hello?.user_id],
    ["Name", hello?.username],
    ["Token expires", hello?.expires_at === null ? "never" : new Date((hello?.expires_at ?? 0) * 1000).toLocaleString()],
    ["Session", hello?.session_id],
    ["Gateway process", hello?.instance_id],
    ["Protocol", hello?.protocol],
    ["Endpoint", session.url],
    ["Calls in flight", `up to ${hello?.limits.max_in_flight}`],
    ["Message size", `up to ${hello?.limits.max_message_size} bytes`],
    ["Timeout of a request", `${hello?.limits.request_timeout} s`],
  ];
  return html`
    <section class="identity-panel card" id="identity" aria-label="Your identity" tabindex="-1" ref=${panel}
      onKeyDown=${(/** @type {KeyboardEvent} */ event) => event.key === "Escape" && onLeave()}>
      <h2>Your identity</h2>
      <dl>${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      <${Colours} />
      ${claims && html`<h3>Claims of the token</h3><${Json} label="Claims" text=${pretty(claims)} />`}
      <div class="actions">
        <button type="button" onClick=${onLeave}>Close</button>
        <button type="button" class="quiet" onClick=${onSignOut}>Sign out</button>
      </div>
    </section>`;
}

/** A choice of dark or light, for all visits with this browser. */
function Colours() {
  const [theme, setTheme] = useState(chosenTheme);
  const id = useId();
  return html`
    <div class="field">
      <label for=${id}>Colours</label>
      <select id=${id} value=${theme} onChange=${(/** @type {any} */ event) => {
        chooseTheme(event.target.value);
        setTheme(event.target.value);
      }}>${THEMES.map(([name, label]) => html`<option value=${name}>${label}</option>`)}</select>
    </div>`;
}

/** @type {Record<Wanted, string>} */
const WANTED = {
  refresh: "The token expires soon",
  expired: "The token has expired",
  refused: "The gateway no longer accepts the token",
};

/** Why a session was not resumed. @type {Record<string, string>} */
const REASONS = {
  expired: "it was without a connection for too long",
  overflow: "it missed more than the gateway keeps",
  unknown: "the gateway does not know it",
  gone: "its gateway process does not answer",
  ended: "it was ended on purpose",
  off: "this gateway resumes no sessions",
};

/** @param {{ session: Session }} props */
function Return({ session }) {
  const { lastReturn } = session;
  if (lastReturn === null) return html`<p class="unseen" role="status"></p>`;
  const { resumed, reason, replayed, inFlight, topics } = lastReturn;
  return html`
    <div class="notice bar" role="status">
      <p>${resumed
        ? html`<b>The session was resumed.</b> Replayed: ${plural(replayed, "answer or event", "answers and events")}. In
            flight: ${plural(inFlight, "call", "calls")}. Subscriptions: ${topics.length === 0 ? "none" : topics.join(", ")}.`
        : html`<b>The session was not resumed</b> (${reason}: ${REASONS[reason] ?? "the gateway says no more"}). Calls that
            were in flight have an unknown outcome, and events may be missing.`}</p>
      <button type="button" class="small" onClick=${() => session.forgetReturn()}>Close</button>
    </div>`;
}

/** @param {number} count @param {string} one @param {string} many */
function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}

/** @param {{ session: Session, onSignOut: () => void }} props */
function Notices({ session, onSignOut }) {
  const { state, wanted } = session;
  return html`
    ${wanted !== null && html`
      <section class="notice ${wanted === "refresh" ? "" : "urgent"}" aria-label="A newer token">
        <div>
          <h2>${WANTED[wanted]}</h2>
          <p class="muted">Paste a newer token of the same user to continue. Calls wait, and subscriptions are restored.</p>
        </div>
        <${TokenForm} label="Newer token" action="Continue" problem=${session.wantedProblem}
          onToken=${(/** @type {string} */ token) => {
            session.provide(token);
            if (kept.get() !== null) kept.set(session.token);
          }} />
      </section>`}
    <${Return} session=${session} />
    ${session.meshIsAway && html`
      <p class="notice bar" role="status"><b>The gateway has no connection to the mesh.</b> Your connection stays open;
      call again in a moment.</p>`}
    ${state.name === "reconnecting" && html`
      <p class="notice bar"><b>The connection to the gateway is lost</b> (${messageOf(state.error)}). The page
      reconnects by itself; calls wait, and subscriptions are restored.</p>`}
    ${state.name === "closed" && html`
      <div class="notice bar urgent" role="alert"><p><b>The gateway has closed the connection for good</b>
      (${messageOf(state.error)}).</p><button type="button" onClick=${onSignOut}>Sign in again</button></div>`}`;
}

/** @param {{ size: string }} props */
function Logo({ size }) {
  return html`<img src="console/icon.svg" alt="" width=${size} height=${size} />`;
}
