/** Events, frames, and the chart of latency and rate. */
import { bytes, clock, duration, plain, pretty, short } from "./text.js";
import { Json, html, useEffect, useId, useRef, useState } from "./ui.js";
import { onTheme } from "./theme.js";
import uPlot from "./vendor/uplot.js";

/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {import("./session.js").Sample} Sample
 */

// --- events ---------------------------------------------------------------------------------------------------------

/** @param {{ session: Session }} props */
export function Events({ session }) {
  const [topic, setTopic] = useState("");
  const [paused, setPaused] = useState(/** @type {Session["events"] | null} */ (null));
  const [open, setOpen] = useState(/** @type {number | null} */ (null));
  const id = useId();
  const wishes = [...session.wishes.values()];
  const suggested = session.topics.filter((each) => !session.wishes.has(each));
  const entries = paused ?? session.events;
  /** @param {string} wanted */
  const subscribe = (wanted) => {
    for (const each of wanted.split(/[\s,]+/)) if (each !== "") session.subscribe(each);
    setTopic("");
  };
  return html`
    <section class="events card" aria-labelledby="events-title">
      <div class="head">
        <h2 id="events-title">Events</h2>
        <button type="button" class="small" aria-pressed=${paused !== null}
          onClick=${() => setPaused(paused === null ? session.events : null)}>${paused === null ? "Pause" : "Resume"}</button>
        <button type="button" class="small" onClick=${() => session.clearEvents()}>Clear</button>
      </div>
      <form class="row" onSubmit=${(/** @type {Event} */ event) => {
        event.preventDefault();
        subscribe(topic);
      }}>
        <label class="unseen" for=${id}>Topic to subscribe to</label>
        <input id=${id} class="mono" type="text" value=${topic} placeholder=${suggested[0] ?? "orders.#"} autocomplete="off"
          spellcheck=${false} list="${id}-topics" onInput=${(/** @type {any} */ event) => setTopic(event.target.value)} />
        <datalist id="${id}-topics">${suggested.map((each) => html`<option value=${each} />`)}</datalist>
        <button type="submit">Subscribe</button>
      </form>
      <ul class="chips" aria-label="Subscriptions">
        ${wishes.map((wish) => html`
          <li key=${wish.topic} class="chip" data-state=${wish.state}>
            <code>${wish.topic}</code>
            ${wish.state === "active" && wish.count > 0 && html`<span class="count">${wish.count}</span>`}
            ${wish.state === "pending" && html`<span class="muted">subscribing…</span>`}
            ${wish.problem && html`<span class="problem" role="alert">${wish.problem}</span>`}
            <button type="button" aria-label="Unsubscribe from ${wish.topic}" onClick=${() => session.unsubscribe(wish.topic)}>×</button>
          </li>`)}
        ${suggested.slice(0, 6).map((each) => html`
          <li key="+${each}"><button type="button" class="chip suggestion" aria-label="Subscribe to ${each}"
            onClick=${() => session.subscribe(each)}>+ <code>${each}</code></button></li>`)}
      </ul>
      ${entries.length === 0
        ? html`<p class="empty">Subscribe to a topic to see its events here.</p>`
        : html`<ol class="log" aria-label="Events, the newest first" tabindex="0">
            ${entries.map((entry) => html`
              <li key=${entry.number} class=${entry.notice ? "note" : ""}>
                <button type="button" aria-expanded=${open === entry.number}
                  onClick=${() => setOpen(open === entry.number ? null : entry.number)}>
                  <span class="time">${clock(entry.at)}</span>
                  <span class="topic">${entry.topic}</span>
                  <span class="ellipsis grow">${short(session.redact(plain(entry.event)))}</span>
                </button>
                ${open === entry.number && html`<${Json} text=${session.redact(pretty(entry.event))} label="Event" copy />
                  ${entry.traceId && html`<p class="hint">Trace id <code>${entry.traceId}</code></p>`}`}
              </li>`)}
          </ol>`}
    </section>`;
}

// --- frames ---------------------------------------------------------------------------------------------------------

/** @param {{ session: Session }} props */
export function Frames({ session }) {
  const [paused, setPaused] = useState(/** @type {Session["frames"] | null} */ (null));
  const [pings, setPings] = useState(false);
  const [open, setOpen] = useState(/** @type {number | null} */ (null));
  const frames = (paused ?? session.frames).filter(({ quiet }) => pings || !quiet);
  return html`
    <section class="frames card" aria-labelledby="frames-title">
      <div class="head">
        <h2 id="frames-title">Frames</h2>
        <label class="check"><input type="checkbox" checked=${pings} onChange=${() => setPings(!pings)} />Pings, acks</label>
        <button type="button" class="small" aria-pressed=${paused !== null} aria-label=${paused === null ? "Pause the frames" : "Resume the frames"}
          onClick=${() => setPaused(paused === null ? session.frames : null)}>${paused === null ? "Pause" : "Resume"}</button>
        <button type="button" class="small" aria-label="Clear the frames" onClick=${() => session.clearFrames()}>Clear</button>
      </div>
      ${frames.length === 0 && html`<p class="empty">All frames of the WebSocket appear here.</p>`}
      <ol class="log" aria-label="Frames, the newest first" tabindex="0">
        ${frames.map((frame) => html`
          <li key=${frame.number} data-out=${frame.out}>
            <button type="button" aria-expanded=${frame.text === "" ? undefined : open === frame.number} disabled=${frame.text === ""}
              onClick=${() => setOpen(open === frame.number ? null : frame.number)}>
              <span class="time">${clock(frame.at)}</span>
              <span class="arrow" role="img" aria-label=${frame.out ? "sent" : "received"}>${frame.out ? "↑" : "↓"}</span>
              <span class="kind">${frame.kind}</span>
              <span class="ellipsis grow">${frame.about}</span>
              ${frame.text !== "" && html`<span class="muted size">${bytes(frame.size)}</span>`}
            </button>
            ${open === frame.number && html`<${Json} text=${formatted(frame.text)} label="Frame" copy />`}
          </li>`)}
      </ol>
    </section>`;
}

/** @param {string} text */
function formatted(text) {
  try {
    return pretty(JSON.parse(text));
  } catch {
    return text;
  }
}

// --- the chart ------------------------------------------------------------------------------------------------------

const HEIGHT = 132;
/** The least and the most seconds that the chart shows. */
const SPAN = /** @type {const} */ ({ least: 20, most: 120 });

/** @param {{ session: Session }} props */
export function Chart({ session }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const plot = useRef(/** @type {uPlot | null} */ (null));
  const { samples } = session;
  useEffect(() => {
    const element = /** @type {HTMLElement} */ (place.current);
    const make = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(element), columns(session.samples), element);
    };
    make();
    const forget = onTheme(make);
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      forget();
      observer.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, []);
  useEffect(() => plot.current?.setData(columns(samples)), [samples]);
  const trips = samples.map(({ roundTrip }) => roundTrip).filter((each) => each !== null);
  const calls = samples.map(({ call }) => call).filter((each) => each !== null);
  const last = samples.slice(-5);
  const rate = last.reduce((sum, each) => sum + each.rate, 0) / Math.max(1, last.length);
  const figures = [
    ["gateway", "round trip", "Round trip to the gateway, median", trips.length === 0 ? "–" : duration(median(trips))],
    ["calls", "calls", "Slowest call of each second, median", calls.length === 0 ? "–" : duration(median(calls))],
    ["rate", "frames", "Frames a second", `${rate.toFixed(rate < 10 ? 1 : 0)}/s`],
  ];
  const summary = figures.map(([, , title, value]) => `${title}: ${value}`).join("; ");
  return html`
    <section class="chart card" aria-labelledby="chart-title">
      <div class="head">
        <h2 id="chart-title">Latency and rate</h2>
        <button type="button" class="small" disabled=${session.state.name !== "open"} onClick=${() => session.cut()}
          title="Cut the connection as a network does that goes away">Cut the connection</button>
      </div>
      <dl class="figures">${figures.map(([series, name, title, value]) => html`
        <div key=${series} data-series=${series} title=${title}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      <div class="plot" ref=${place} role="img" aria-label="The last two minutes. ${summary}"></div>
    </section>`;
}

/** @param {readonly number[]} values */
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

/**
 * The samples as columns, for uPlot, which draws a line across an undefined value and none across null: a ping that took
 * longer than a second leaves no hole, an outage does.
 * @param {readonly Sample[]} samples @returns {uPlot.AlignedData}
 */
export function columns(samples) {
  return [
    samples.map(({ at }) => at),
    samples.map(({ rate }) => rate),
    samples.map(({ roundTrip, isOpen }) => roundTrip ?? (isOpen ? undefined : null)),
    samples.map(({ call }) => call),
  ];
}

/** The width of an axis, in pixels, with room for its longest label. @param {uPlot} _ @param {string[] | null} labels */
function widthOf(_, labels) {
  return 16 + 7 * Math.max(3, ...(labels ?? []).map((each) => each.length));
}

/** @param {HTMLElement} element @returns {uPlot.Options} */
function options(element) {
  const style = getComputedStyle(element);
  const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  const axis = {
    stroke: colour("--muted"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
  };
  const withUnit = (/** @type {string} */ unit) => (/** @type {uPlot} */ _, /** @type {number[]} */ values) =>
    values.map((each) => `${each}${unit}`);
  return {
    width: element.clientWidth,
    height: HEIGHT,
    padding: [8, 0, 0, 0],
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time: true, range: (_, first, last) => [last - Math.min(SPAN.most, Math.max(SPAN.least, last - first)), last] },
      ms: { range: (_, __, most) => [0, Math.max(5, (most ?? 0) * 1.15)] },
      rate: { range: (_, __, most) => [0, Math.max(4, (most ?? 0) * 1.6)] },
    },
    axes: [
      {
        ...axis,
        size: 22,
        gap: 4,
        grid: { show: false },
        // No label at the start, where it would cover the other axis.
        splits: (_, __, from, to) => [0.25, 0.5, 0.75].map((part) => from + (to - from) * part),
        values: ({ scales }, at) => at.map((each) => `${Math.round((scales.x?.max ?? 0) - each)} s ago`),
      },
      { ...axis, scale: "ms", size: widthOf, values: withUnit(" ms") },
      { ...axis, scale: "rate", side: 1, size: widthOf, grid: { show: false }, values: withUnit("/s") },
    ],
    series: [
      {},
      {
        scale: "rate",
        stroke: colour("--rate"),
        fill: colour("--rate-fill"),
        width: 1,
        points: { show: false },
        paths: uPlot.paths.stepped?.({ align: 1 }),
      },
      { scale: "ms", stroke: colour("--accent"), width: 2, points: { show: false } },
      {
        scale: "ms",
        stroke: colour("--call"),
        width: 0,
        points: { show: true, size: 7, fill: colour("--call"), stroke: colour("--call") },
      },
    ],
  };
}
