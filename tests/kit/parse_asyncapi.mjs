// Judges AsyncAPI documents with the reference parser: a list of them on standard input, their problems on standard
// output. `node parse_asyncapi.mjs <the directory of node_modules>`.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const { Parser } = require("@asyncapi/parser");
const parser = new Parser();
const found = [];
for (const text of JSON.parse(readFileSync(0, "utf8"))) {
  const { document, diagnostics } = await parser.parse(text);
  // What is a warning is a matter of taste; without a document it is not valid.
  const errors = diagnostics.filter(({ severity }) => severity === 0);
  found.push([
    ...(document === undefined ? ["there is no document"] : []),
    ...errors.map(({ message, path }) => `${path.join("/")}: ${message}`),
  ]);
}
console.log(JSON.stringify(found));
