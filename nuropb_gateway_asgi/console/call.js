/** Services and their methods, the form of a call, and answers. */
import { fieldsOf, isOpen, own, readFields, readObject, textsOf, understood, withEntry } from "./form.js";
import { bytes, clock, duration, plain, pretty, short } from "./text.js";
import { LANGUAGES, asText } from "./copy.js";
import { Copy, Json, html, saveFile, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "./ui.js";

/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {import("./session.js").Call} Call
 * @typedef {import("./form.js").Field} Field
 * @typedef {{ service: string, method: string }} Chosen
 * @typedef {{ description?: string | null, parameters: object, requires_encryption: boolean }} Method
 */

/** Up to this number of methods there is no search. */
const FEW = 5;

// --- services -------------------------------------------------------------------------------------------------------

/** @param {{ session: Session, chosen: Chosen | null, onChoose: (chosen: Chosen) => void }} props */
export function Services({ session, chosen, onChoose }) {
  const [filter, setFilter] = useState("");
  const [problem, setProblem] = useState("");
  const id = useId();
  const { description } = session;
  const wanted = filter.trim().toLowerCase();
  const count = Object.values(description?.services ?? {}).reduce((sum, { methods }) => sum + Object.keys(methods).length, 0);
  const services = Object.entries(description?.services ?? {})
    .map(([name, service]) => {
      const about = `${name} ${service.description ?? ""}`;
      const methods = Object.entries(service.methods)
        .filter(([method, { description }]) => `${about} ${name}.${method} ${description ?? ""}`.toLowerCase().includes(wanted))
        .map(([method]) => method);
      return { name, service, methods };
    })
    .filter(({ methods }) => methods.length > 0);
  /** @param {"asyncapi" | "openapi"} kind */
  const save = (kind) => () =>
    session.contract(kind).then(
      (text) => (setProblem(""), saveFile(text, `${kind}.json`)),
      (error) => setProblem(error.message),
    );
  return html`
    <nav class="services card" aria-label="Services">
      <div class="head">
        <h2>Services</h2>
        <button type="button" class="small" onClick=${() => session.describe()} disabled=${session.describing}>
          ${session.describing ? "Loading…" : "Refresh"}</button>
      </div>
      ${count > FEW && html`
        <label class="unseen" for=${id}>Search in services and methods</label>
        <input id=${id} type="search" placeholder="Search" value=${filter}
          onInput=${(/** @type {any} */ event) => setFilter(event.target.value)} />`}
      ${session.describeProblem && html`<p class="problem" role="alert">${session.describeProblem}</p>`}
      <div class="list">
        ${services.map(({ name, service, methods }) => html`
          <section key=${name}>
            <h3 title=${service.description ?? ""}>${name}${service.version && html` <span class="version">${service.version}</span>`}</h3>
            <ul>${methods.map((method) => html`
              <li key=${method}><button type="button"
                aria-current=${chosen?.service === name && chosen.method === method ? "true" : undefined}
                title=${service.methods[method]?.description ?? ""}
                onClick=${() => onChoose({ service: name, method })}>${method}</button></li>`)}</ul>
          </section>`)}
        ${description !== null && services.length === 0 && html`<p class="muted">${
          wanted ? "No service and no method has this." : "You have no permission to call any method."}</p>`}
        ${(description?.unavailable ?? []).map((name) => html`
          <section key=${name}><h3>${name} <span class="badge warn">does not answer</span></h3></section>`)}
      </div>
      <div class="contract">
        <span>Contract</span>
        <button type="button" class="small" onClick=${save("asyncapi")}>AsyncAPI</button>
        <button type="button" class="small" onClick=${save("openapi")}>OpenAPI</button>
      </div>
      <p class="problem" role="alert">${problem}</p>
    </nav>`;
}

// --- a call ---------------------------------------------------------------------------------------------------------

/** @param {{ session: Session, chosen: Chosen | null, onChoose: (chosen: Chosen) => void }} props */
export function CallPanel({ session, chosen, onChoose }) {
  const [shown, setShown] = useState(/** @type {number | null} */ (null));
  const [draft, setDraft] = useState(/** @type {{ number: number, params: Record<string, unknown> } | null} */ (null));
  const method = chosen === null ? undefined : own(own(session.description?.services, chosen.service)?.methods, chosen.method);
  const title = useRef(/** @type {HTMLElement | null} */ (null));
  const isFirst = useRef(true);
  // After choosing a method, a person continues in its form: the next Tab leads to the first field, and on a phone the
  // form is in view. The focus moves before the form is painted, so that no key goes to the old element.
  useLayoutEffect(() => {
    if (chosen !== null && !isFirst.current) title.current?.focus();
    if (chosen !== null) isFirst.current = false;
  }, [chosen]);
  const call = session.calls.find(({ number }) => number === shown) ?? null;
  /** @param {"request" | "command"} kind @param {Record<string, unknown>} params @param {number | undefined} timeout */
  const make = (kind, params, timeout) => {
    if (chosen !== null) setShown(session.call(kind, chosen.service, chosen.method, params, timeout).number);
  };
  /** @param {Call} again */
  const repeat = (again) => {
    onChoose({ service: again.service, method: again.method });
    setDraft({ number: again.number, params: again.params });
    setShown(again.number);
  };
  return html`
    <section class="call card" aria-labelledby="call-title" tabindex="-1" ref=${title}>
      ${chosen === null || method === undefined
        ? html`<h2 id="call-title">Call a method</h2><p class="muted">${
            session.description === null ? "Loading your methods…" : "Choose a method."}</p>`
        : html`<${Form} key="${chosen.service}.${chosen.method}#${draft?.number ?? ""}" chosen=${chosen} method=${method}
            draft=${draft?.params ?? {}} onCall=${make} />`}
      <${Answer} session=${session} call=${call} />
      <${History} session=${session} shown=${shown} onShow=${repeat} />
    </section>`;
}

/**
 * @param {{ chosen: Chosen, method: Method, draft: Record<string, unknown>,
 *   onCall: (kind: "request" | "command", params: Record<string, unknown>, timeout: number | undefined) => void }} props
 */
function Form({ chosen, method, draft, onCall }) {
  const parameters = /** @type {any} */ (method.parameters);
  const fields = useMemo(() => fieldsOf(parameters), [method]);
  const unlisted = Object.keys(draft).some((name) => !fields.some((field) => field.name === name));
  const [asJson, setAsJson] = useState(unlisted || (fields.length === 0 && isOpen(parameters)));
  const [texts, setTexts] = useState(() => textsOf(fields, draft));
  const [json, setJson] = useState(() => pretty(draft));
  const [timeout, setTimeout_] = useState("");
  const [tried, setTried] = useState(false);
  const form = useRef(/** @type {HTMLFormElement | null} */ (null));
  const id = useId();
  const reading = asJson ? readObject(json) : readFields(fields, texts);
  const seconds = timeout.trim() === "" ? undefined : Number(timeout);
  const timeoutProblem = seconds !== undefined && !(seconds > 0 && seconds < Infinity) ? "Seconds, such as 5." : "";
  const isSound = Object.keys(reading.problems).length === 0 && timeoutProblem === "";
  const focusProblem = () => {
    const field = form.current?.querySelector("[aria-invalid=true]");
    if (field instanceof HTMLElement) field.focus();
  };
  /** @param {"request" | "command"} kind */
  const send = (kind) => {
    setTried(true);
    if (isSound) onCall(kind, reading.params, seconds === undefined ? undefined : seconds * 1000);
    else requestAnimationFrame(focusProblem);
  };
  const turn = () => {
    setTried(false);
    if (asJson) setTexts(textsOf(fields, reading.params));
    else setJson(pretty(reading.params));
    setAsJson(!asJson);
  };
  const lost = asJson && Object.keys(reading.params).some((name) => !fields.some((field) => field.name === name));
  const canTurn = !asJson || (isSound && !lost && fields.length > 0);
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send("request");
    }
  };
  return html`
    <div class="head">
      <h2 id="call-title"><span class="muted">${chosen.service}.</span>${chosen.method}
        ${method.requires_encryption && html` <span class="badge">encrypted</span>`}</h2>
      <button type="button" class="small" onClick=${turn} disabled=${!canTurn}>${asJson ? "Edit as fields" : "Edit as JSON"}</button>
    </div>
    ${method.description && html`<p class="doc">${method.description}</p>`}
    <form ref=${form} novalidate onKeyDown=${onKeyDown} onSubmit=${(/** @type {Event} */ event) => {
      event.preventDefault();
      send("request");
    }}>
      ${asJson
        ? html`<${Area} id="${id}-json" label="Parameters" type="JSON object" value=${json} onValue=${setJson} rows=${5}
            problem=${reading.problems[""] ?? ""} />`
        : fields.map((field) => html`<${Input} key=${field.name} id="${id}-${field.name}" field=${field}
            value=${texts[field.name] ?? ""} problem=${tried ? (reading.problems[field.name] ?? "") : ""}
            onValue=${(/** @type {string} */ text) => setTexts((former) => withEntry(former, field.name, text))} />`)}
      ${!asJson && fields.length === 0 && html`<p class="muted">This method takes no parameters.</p>`}
      <div class="actions">
        <button type="submit" class="primary">Call</button>
        <button type="button" onClick=${() => send("command")} title="Send the call without waiting for its result">Send as command</button>
        <label class="timeout">Timeout
          <input type="text" inputmode="decimal" value=${timeout} placeholder="default" size="6" autocomplete="off"
            aria-invalid=${tried && timeoutProblem !== ""} onInput=${(/** @type {any} */ event) => setTimeout_(event.target.value)} /> s</label>
        <span class="keys muted" aria-hidden="true"><kbd>Ctrl</kbd> <kbd>Enter</kbd></span>
      </div>
      <details class="copies">
        <summary>Copy as code</summary>
        <div class="actions">${LANGUAGES.map(([language, label]) => html`
          <${Copy} key=${language} what="the call, for ${label}" name=${label} disabled=${!isSound}
            text=${asText(language, chosen, reading.params)} />`)}</div>
        <p class="hint">The token is taken from <code>NUROPB_GATEWAY_TOKEN</code>, or from your <code>getToken</code>.</p>
      </details>
      ${tried && timeoutProblem && html`<p class="problem">Timeout: ${timeoutProblem}</p>`}
    </form>`;
}

/** @param {{ id: string, field: Field, value: string, problem: string, onValue: (text: string) => void }} props */
function Input({ id, field, value, problem, onValue }) {
  const { name, type, kind, required, hint } = field;
  if (kind === "json" || kind === "any") {
    const note = kind === "any" ? understood(value) : "";
    return html`<${Area} id=${id} label=${name} type=${type} required=${required} value=${value} rows=${1}
      hint=${note || hint} problem=${problem} onValue=${onValue} />`;
  }
  const described = { "aria-invalid": problem !== "", "aria-describedby": `${id}-note`, "aria-required": required };
  const onInput = (/** @type {any} */ event) => onValue(event.target.value);
  return html`
    <div class="field">
      <${Label} id=${id} name=${name} type=${type} required=${required} />
      ${kind === "boolean"
        ? html`<select id=${id} value=${value} onChange=${onInput} ...${described}>
            <option value="">${required ? "choose" : "leave out"}</option>
            <option value="true">true</option><option value="false">false</option></select>`
        : html`<input id=${id} type="text" inputmode=${kind === "text" ? undefined : "decimal"} value=${value}
            autocomplete="off" spellcheck=${false} onInput=${onInput} ...${described} />`}
      <${Note} id=${id} hint=${hint} problem=${problem} />
    </div>`;
}

/**
 * @param {{ id: string, label: string, type: string, required?: boolean, value: string, rows: number, hint?: string,
 *   problem: string, onValue: (text: string) => void }} props
 */
function Area({ id, label, type, required = false, value, rows, hint = "", problem, onValue }) {
  const lines = Math.min(16, Math.max(rows, value.split("\n").length));
  return html`
    <div class="field">
      <${Label} id=${id} name=${label} type=${type} required=${required} />
      <textarea id=${id} class="mono" rows=${lines} value=${value} spellcheck=${false} autocomplete="off"
        aria-invalid=${problem !== ""} aria-describedby="${id}-note" aria-required=${required}
        onInput=${(/** @type {any} */ event) => onValue(event.target.value)}></textarea>
      <${Note} id=${id} hint=${hint} problem=${problem} />
    </div>`;
}

/** @param {{ id: string, name: string, type: string, required: boolean }} props */
function Label({ id, name, type, required }) {
  return html`<label for=${id}><b>${name}</b> <span class="type">${type}</span>
    ${required && html` <span class="required">required</span>`}</label>`;
}

/** @param {{ id: string, hint: string, problem: string }} props */
function Note({ id, hint, problem }) {
  return html`<p id="${id}-note" class=${problem ? "problem" : "hint"}>${problem || hint}</p>`;
}

// --- answers --------------------------------------------------------------------------------------------------------

/** @param {{ session: Session, call: Call | null }} props */
function Answer({ session, call }) {
  const state = call === null ? "none" : call.ms === null ? "waiting" : call.problem === null ? "ok" : "failed";
  const text = call === null || call.result === undefined ? "" : session.redact(pretty(call.result));
  return html`
    <div class="answer" data-state=${state}>
      <p class="said" role="status" aria-live="polite">${call !== null && call.ms !== null && said(call, session)}</p>
      ${call !== null && html`
        <div class="verdict">
          ${call.ms === null
            ? html`<span class="badge">waiting</span> <${Elapsed} since=${call.startedAt} />
                <button type="button" class="small" onClick=${call.abort}>Cancel</button>`
            : html`<span class="badge ${call.problem === null ? "good" : "bad"}">${call.problem?.code ?? (call.kind === "command" ? "taken" : "ok")}</span>
                <span class="ms">${duration(call.ms)}</span>
                ${call.kind === "request" && call.problem === null && html`<span class="muted">${bytes(call.size)}</span>`}`}
          <span class="muted grow">${call.service}.${call.method}</span>
        </div>`}
      ${call?.problem && html`
        <p class="message">${session.redact(call.problem.message)}</p>
        <p class="hint">${call.problem.retryable ? "The call was not delivered; you may call again." : ""}
          ${call.problem.retryAfter !== null && ` Wait for ${duration(call.problem.retryAfter)} first.`}
          ${call.problem.traceId && html` Trace id <code>${call.problem.traceId}</code>`}</p>`}
      ${state === "ok" && call?.kind === "request" && !call.isOld && html`<${Json} text=${text} label="Answer" copy />`}
      ${state === "ok" && call?.isOld && html`<p class="muted">Results are not kept over a reload: call again.</p>`}
      ${state === "ok" && call?.kind === "command" && !call.isOld && html`<p class="muted">The mesh has taken the command. Its outcome
        is unknown.</p>`}
    </div>`;
}

/** The text that a screen reader reads for an answer. Long results are cut. @param {Call} call @param {Session} session */
function said(call, session) {
  const name = `${call.service}.${call.method}`;
  if (call.problem !== null) return `${name} failed: ${call.problem.code}. ${session.redact(call.problem.message)}`;
  const after = `after ${duration(call.ms ?? 0)}`;
  return call.kind === "command" ? `${name} taken ${after}` : `${name} answered ${after}: ${short(session.redact(plain(call.result)))}`;
}

/** @param {{ since: number }} props */
function Elapsed({ since }) {
  const [now, setNow] = useState(() => performance.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(performance.now()), 100);
    return () => clearInterval(timer);
  }, []);
  return html`<span class="ms">${duration(Math.max(0, now - since))}</span>`;
}

/** @param {{ session: Session, shown: number | null, onShow: (call: Call) => void }} props */
function History({ session, shown, onShow }) {
  if (session.calls.length < 2 && !session.calls.some(({ isOld }) => isOld)) return null;
  return html`
    <details class="history">
      <summary>Earlier calls <span class="count">${session.calls.length}</span></summary>
      <ul>${session.calls.map((call) => html`
        <li key=${call.number}><button type="button" aria-current=${call.number === shown ? "true" : undefined}
          onClick=${() => onShow(call)}>
          <span class="muted">${clock(call.at).slice(0, 8)}</span>
          <span class="grow ellipsis"><b>${call.service}.${call.method}</b> ${short(session.redact(plain(call.params)), 80)}</span>
          <span class="badge ${call.ms === null ? "" : call.problem === null ? "good" : "bad"}">${
            call.ms === null ? "waiting" : (call.problem?.code ?? "ok")}</span>
          <span class="ms">${call.ms === null ? "" : duration(call.ms)}</span>
        </button></li>`)}</ul>
    </details>`;
}
