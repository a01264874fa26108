// An agent made with the official SDK: finds a tool by its title, and prints the result of a call.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url = "", token = "", title = ""] = process.argv.slice(2);
const transport = new StreamableHTTPClientTransport(new URL(url), {
    requestInit: { headers: { Authorization: `Bearer ${token}` } },
});
const client = new Client({ name: "test", version: "1.0.0" });
await client.connect(transport);
const { tools } = await client.listTools();
const name = tools.find((each) => each.title === title)?.name ?? title;
const { structuredContent, isError } = await client.callTool({ name, arguments: { a: 1, b: 2 } });
await client.close();
console.log(JSON.stringify({ structuredContent, isError: isError ?? false }));
