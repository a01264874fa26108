/** The page "Agents": the tools of the signed-in token, lines that add the gateway to a host, and recent tool calls. */
import { messageOf } from "./session.js";
import { clock, duration, pretty, short } from "./text.js";
import { Copy, Json, html, useEffect, useState } from "./ui.js";

/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {{ name: string, title?: string, description?: string, inputSchema: Record<string, any>,
 *   annotations?: Record<string, unknown> }} Tool
 * @typedef {{ at: number, tool: string, outcome: string, ms: number, trace_id: string }} ToolCall
 */

const { agents = "" } = document.documentElement.dataset;
/** The version of the protocol without a handshake: each request stands alone. */
const VERSION = "2026-07-28";
/** Milliseconds between two looks for recent calls, while the page is open. */
const INTERVAL = 3000;
/** Pages of a list that are read at most. */
const PAGES = 50;

/** @param {{ session: Session }} props */
export function Agents({ session }) {
  if (agents === "") {
    return html`
      <section class="agents card" aria-labelledby="agents-title">
        <h2 id="agents-title">Tools for agents</h2>
        <p>This gateway gives no tools to agents. Install its extra <code>mcp</code> and set <code>MCP=on</code>.</p>
      </section>`;
  }
  const url = new URL(agents, location.href).href;
  return html`
    <div class="agents">
      <${Tools} session=${session} url=${url} />
      <${Hosts} session=${session} url=${url} />
      <${Recent} session=${session} url=${url} />
    </div>`;
}

// --- tools ----------------------------------------------------------------------------------------------------------

/** @param {{ session: Session, url: string }} props */
function Tools({ session, url }) {
  const [tools, setTools] = useState(/** @type {Tool[] | null} */ (null));
  const [problem, setProblem] = useState("");
  const [open, setOpen] = useState("");
  const [asked, ask] = useState(0);
  const { token } = session;
  useEffect(() => {
    const controller = new AbortController();
    listTools(url, token, controller.signal).then(
      (found) => (setTools(found), setProblem("")),
      (error) => controller.signal.aborted || setProblem(messageOf(error)),
    );
    return () => controller.abort();
  }, [url, token, asked]);
  return html`
    <section class="tools card" aria-labelledby="tools-title">
      <div class="head">
        <h2 id="tools-title">Your tools ${tools !== null && html`<span class="count">${tools.length}</span>`}</h2>
        <button type="button" class="small" aria-label="Refresh the tools" onClick=${() => ask(asked + 1)}>Refresh</button>
      </div>
      <p class="muted">An agent with your token may call these methods, and no others.</p>
      <p class="problem" role="alert">${problem}</p>
      ${tools === null && problem === "" && html`<p class="muted">Loading…</p>`}
      ${tools?.length === 0 && html`<p class="empty">No rule of the policy makes a method that you may call a tool
        (<code>allow = "tool"</code>, or <code>EXPOSE_TOOLS</code>).</p>`}
      <ul class="log" aria-label="Tools">
        ${tools?.map((tool) => html`
          <li key=${tool.name}>
            <button type="button" aria-expanded=${open === tool.name} onClick=${() => setOpen(open === tool.name ? "" : tool.name)}>
              <code>${tool.name}</code>
              <span class="ellipsis grow muted">${short(session.redact(ownWords(tool)))}</span>
              ${hintsOf(tool).map((hint) => html`<span class="badge ${hint === "destructive" ? "warn" : ""}">${hint}</span>`)}
            </button>
            ${open === tool.name && html`
              <p class="doc">${session.redact(tool.description ?? "")}</p>
              <${Json} text=${session.redact(pretty(tool.inputSchema))} label="Input schema of ${tool.name}" copy />`}
          </li>`)}
      </ul>
    </section>`;
}

/** The service's own words about a tool, or all that is said. @param {Tool} tool */
function ownWords({ description = "" }) {
  return description.split("(data, not instructions): ").at(-1) ?? "";
}

/** The hints of a tool that somebody has given. @param {Tool} tool */
function hintsOf({ annotations = {} }) {
  const names = { readOnlyHint: "read only", destructiveHint: "destructive", idempotentHint: "idempotent", openWorldHint: "open world" };
  return Object.entries(names).filter(([name]) => annotations[name] === true).map(([, text]) => text);
}

// --- hosts ----------------------------------------------------------------------------------------------------------

/** @param {{ session: Session, url: string }} props */
function Hosts({ session, url }) {
  const header = `Authorization: Bearer ${session.token}`;
  const headers = { Authorization: `Bearer ${session.token}` };
  const hosts = [
    ["Claude Code", `claude mcp add --transport http nuropb ${url} --header "${header}"`],
    ["Cursor", JSON.stringify({ mcpServers: { nuropb: { url, headers } } })],
    ["VS Code", JSON.stringify({ servers: { nuropb: { type: "http", url, headers } } })],
    ["Other hosts", JSON.stringify({ mcpServers: { nuropb: { type: "http", url, headers } } })],
  ];
  return html`
    <section class="hosts card" aria-labelledby="hosts-title">
      <h2 id="hosts-title">Add the gateway to a host</h2>
      <p class="muted">A copied line has your token in place of <code>‹token›</code>: whoever has it acts as you.</p>
      <dl>
        ${hosts.map(([name = "", text = ""]) => html`
          <div key=${name}>
            <dt>${name}</dt>
            <dd><code class="line">${session.redact(text)}</code>
              <${Copy} text=${text} what="the line for ${name}" /></dd>
          </div>`)}
      </dl>
    </section>`;
}

// --- recent calls ---------------------------------------------------------------------------------------------------

/** @param {{ session: Session, url: string }} props */
function Recent({ session, url }) {
  const [calls, setCalls] = useState(/** @type {ToolCall[]} */ ([]));
  const [problem, setProblem] = useState("");
  const { token } = session;
  useEffect(() => {
    const controller = new AbortController();
    const look = () =>
      recentCalls(url, token, controller.signal).then(
        (found) => (setCalls(found), setProblem("")),
        (error) => controller.signal.aborted || setProblem(messageOf(error)),
      );
    void look();
    const timer = setInterval(look, INTERVAL);
    return () => (clearInterval(timer), controller.abort());
  }, [url, token]);
  return html`
    <section class="recent card" aria-labelledby="recent-title">
      <h2 id="recent-title">Recent tool calls</h2>
      <p class="muted">Calls by your agents through this gateway process. The log has the others.</p>
      <p class="problem" role="alert">${problem}</p>
      ${calls.length === 0 && html`<p class="empty">No agent with a token of yours has called a tool yet.</p>`}
      <ol class="log" aria-label="Recent tool calls, the newest first">
        ${calls.map((call) => html`
          <li key=${call.trace_id + call.at} class="call-line">
            <span class="time">${clock(new Date(call.at * 1000))}</span>
            <code class="grow ellipsis">${call.tool}</code>
            <span class="badge ${call.outcome === "ok" ? "good" : "bad"}">${call.outcome}</span>
            <span class="muted size" title="Trace id ${call.trace_id}">${duration(call.ms)}</span>
          </li>`)}
      </ol>
    </section>`;
}

// --- requests -------------------------------------------------------------------------------------------------------

/** @param {string} url @param {string} token @param {AbortSignal} signal @returns {Promise<Tool[]>} */
async function listTools(url, token, signal) {
  const tools = [];
  let cursor;
  for (let page = 1; page <= PAGES; page++) {
    const _meta = {
      "io.modelcontextprotocol/protocolVersion": VERSION,
      "io.modelcontextprotocol/clientCapabilities": {},
    };
    const params = cursor === undefined ? { _meta } : { _meta, cursor };
    const response = await fetch(url, {
      method: "POST",
      headers: {
        Authorization: `Bearer ${token}`,
        "Content-Type": "application/json",
        Accept: "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
        "Mcp-Method": "tools/list",
      },
      body: JSON.stringify({ jsonrpc: "2.0", id: page, method: "tools/list", params }),
      signal,
    });
    const { result } = await answerOf(response);
    tools.push(...result.tools);
    cursor = result.nextCursor;
    if (cursor === undefined) break;
  }
  return tools;
}

/** @param {string} url @param {string} token @param {AbortSignal} signal @returns {Promise<ToolCall[]>} */
async function recentCalls(url, token, signal) {
  const response = await fetch(`${url}/calls`, { headers: { Authorization: `Bearer ${token}` }, signal });
  return (await answerOf(response)).calls;
}

/** @param {Response} response */
async function answerOf(response) {
  const answer = await response.json().catch(() => ({}));
  if (response.ok && answer.error === undefined) return answer;
  throw new Error(answer.error?.message ?? `The gateway answered with status ${response.status}.`);
}
