/** A call as text to paste elsewhere: for a shell, a page, or a Python program. It has no token in it. */

/** @typedef {"shell" | "curl" | "javascript" | "python"} Language */
/** @type {readonly (readonly [Language, string])[]} */
export const LANGUAGES = [
  ["curl", "curl"],
  ["javascript", "JavaScript"],
  ["python", "Python"],
  ["shell", "command line"],
];

/** @param {Language} language @param {{ service: string, method: string }} chosen @param {Record<string, unknown>} params */
export function asText(language, { service, method }, params) {
  const { socket = "ws" } = document.documentElement.dataset;
  const gateway = new URL(socket, location.href);
  gateway.protocol = gateway.protocol === "https:" ? "wss:" : "ws:";
  const { href } = gateway;
  const json = JSON.stringify(params);
  switch (language) {
    case "curl": {
      const name = service.split("/").map(encodeURIComponent).join("/");
      const url = new URL(`rpc/${name}/${encodeURIComponent(method)}`, location.href).href;
      return `curl ${quoted(url)} -H "Authorization: Bearer $NUROPB_GATEWAY_TOKEN" -H "Content-Type: application/json" -d ${quoted(json)}`;
    }
    case "javascript":
      return [
        `import { connect } from ${JSON.stringify(new URL("client.js", location.href).href)};`,
        "",
        `const gateway = connect(${JSON.stringify(href)}, { getToken });`,
        `const result = await gateway.request(${JSON.stringify(service)}, ${JSON.stringify(method)}, ${json});`,
        "",
      ].join("\n");
    case "python":
      // A text of JSON is mostly one of Python, too, but for its constants and some escapes.
      return [
        "import json",
        "import os",
        "",
        "from nuropb_gateway_asgi.client import connect_sync",
        "",
        `params = json.loads(${pythons(json)})`,
        `with connect_sync(${pythons(href)}, token=os.environ["NUROPB_GATEWAY_TOKEN"]) as gateway:`,
        `    print(gateway.request(${pythons(service)}, ${pythons(method)}, params))`,
        "",
      ].join("\n");
    default:
      return `nuropb-gateway call --url ${quoted(href)} ${quoted(service)} ${quoted(method)} ${quoted(json)}`;
  }
}

/** One word of a shell. @param {string} text */
function quoted(text) {
  return /^[\w./:=@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A literal of Python. @param {string} text */
function pythons(text) {
  return JSON.stringify(text);
}
