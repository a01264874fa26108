/** The page "Faults" of a gateway for development: what does my page do when replies are late, or the broker is away? */
import { messageOf } from "./session.js";
import { html, useEffect, useState } from "./ui.js";

/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {"share" | "seconds" | "service" | "topic" | "count" | "seed"} Value
 * @typedef {{ name: string, text: string, at_once: boolean, on: boolean, met: number, uses: Value[] } &
 *   Record<Value, string | number>} Fault
 */

const { faults = "" } = document.documentElement.dataset;
/** Whether the gateway has faults on demand. */
export const hasFaults = faults !== "";
/** Milliseconds between two looks, while the page is open: the number of calls that a fault has met changes. */
const INTERVAL = 2000;
/** @type {Record<Value, string>} */
const LABELS = {
  share: "Share",
  seconds: "Seconds",
  service: "Service",
  topic: "Topic",
  count: "Events",
  seed: "Seed",
};

/** @type {Partial<Record<Value, string>>} */
const HINTS = { share: "0 to 1", service: "all", topic: "orders.created" };

/** @param {{ session: Session }} props */
export function Faults({ session }) {
  const [found, setFound] = useState(/** @type {Fault[]} */ ([]));
  const [problem, setProblem] = useState("");
  const url = new URL(faults, location.href).href;
  const { token } = session;
  useEffect(() => {
    const controller = new AbortController();
    const look = () =>
      ask(url, token, null, controller.signal).then(
        (all) => (setFound(all), setProblem("")),
        (error) => controller.signal.aborted || setProblem(messageOf(error)),
      );
    void look();
    const timer = setInterval(look, INTERVAL);
    return () => (clearInterval(timer), controller.abort());
  }, [url, token]);
  /** @param {Record<string, unknown>} wish */
  const set = (wish) => ask(url, token, wish, null).then((all) => (setFound(all), setProblem("")), (error) => setProblem(messageOf(error)));
  return html`
    <section class="agents card faults" aria-labelledby="faults-title">
      <h2 id="faults-title">Faults</h2>
      <p class="muted">They concern all clients of this gateway. The same seed and the same calls give the same run.</p>
      <p class="problem" role="alert">${problem}</p>
      <ul class="log" aria-label="Faults">
        ${found.map((fault) => html`<${Row} key=${fault.name} fault=${fault} onSet=${set} />`)}
      </ul>
    </section>`;
}

/** @param {{ fault: Fault, onSet: (wish: Record<string, unknown>) => void }} props */
function Row({ fault, onSet }) {
  const { name, text, at_once: atOnce, on, met, uses } = fault;
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    const wish = Object.fromEntries(uses.map((use) => {
      const value = /** @type {HTMLInputElement} */ (form.elements.namedItem(use)).value;
      return [use, typeof fault[use] === "number" ? Number(value) : value];
    }));
    onSet({ ...wish, name, on: atOnce || !on });
  };
  return html`
    <li>
      <form class="fault" onSubmit=${submit} novalidate>
        <b>${text}</b>
        ${uses.map((use) => html`
          <label key=${use}>${LABELS[use]}
            <input name=${use} aria-label="${LABELS[use]}: ${text}" placeholder=${HINTS[use] ?? ""} size="8" autocomplete="off" defaultValue=${fault[use]} />
          </label>`)}
        <span class="muted">${met > 0 ? `${met} so far` : ""}</span>
        <button type="submit" class=${on ? "primary small" : "small"} aria-pressed=${atOnce ? undefined : on}
          aria-label="${atOnce ? "Now" : on ? "Switch off" : "Switch on"}: ${text}">
          ${atOnce ? "Now" : on ? "Switch off" : "Switch on"}
        </button>
      </form>
    </li>`;
}

/**
 * @param {string} url @param {string} token @param {Record<string, unknown> | null} wish
 * @param {AbortSignal | null} signal @returns {Promise<Fault[]>}
 */
async function ask(url, token, wish, signal) {
  const response = await fetch(url, {
    method: wish === null ? "GET" : "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    ...(wish === null ? {} : { body: JSON.stringify(wish) }),
    signal,
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.description ?? `The gateway answered with status ${response.status}.`);
  return answer.faults;
}
