// Validates AsyncAPI documents with the reference parser: reads a list of documents from standard input, and writes a
// list of problems per document to standard output. Usage: node parse_asyncapi.mjs <the directory of node_modules>
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const { Parser } = require("@asyncapi/parser");
const parser = new Parser();
const found = [];
for (const text of JSON.parse(readFileSync(0, "utf8"))) {
  const { document, diagnostics } = await parser.parse(text);
  // Warnings are ignored. If the parser returns no document, the text is invalid.
  const errors = diagnostics.filter(({ severity }) => severity === 0);
  found.push([
    ...(document === undefined ? ["there is no document"] : []),
    ...errors.map(({ message, path }) => `${path.join("/")}: ${message}`),
  ]);
}
console.log(JSON.stringify(found));
