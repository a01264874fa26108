// Copies what the console's page loads of others from node_modules into the package: `make vendor`. With a directory
// as its argument it copies there instead, for the test that compares.
import { readFileSync, rmSync, writeFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const target = process.argv[2] ?? join(here, "..", "..", "nuropb_gateway_asgi", "console", "vendor");

/** What is taken: the package, the file in it, what that is called here. @type {[string, string, string][]} */
const FILES = [
  ["preact", "dist/preact.mjs", "preact.js"],
  ["preact", "hooks/dist/hooks.mjs", "hooks.js"],
  ["htm", "dist/htm.module.js", "htm.js"],
  ["uplot", "dist/uPlot.esm.js", "uplot.js"],
  ["uplot", "dist/uPlot.min.css", "uplot.css"],
];
/** For the check of types only: whose they are. */
const TYPES = {
  "preact.d.ts": 'export * from "preact";\n',
  "hooks.d.ts": 'export * from "preact/hooks";\n',
  "htm.d.ts": 'export { default } from "htm";\n',
  "uplot.d.ts": 'export { default } from "uplot";\n',
};

/** @param {string} name @param {string} path */
const read = (name, path) => readFileSync(join(here, "node_modules", name, path), "utf8");

/** Pages have no bare names, and the maps are not shipped. Nothing else is changed. @param {string} text */
const adapt = (text) =>
  text.replaceAll('from"preact"', 'from"./preact.js"').replace(/\n?\/\/# sourceMappingURL=\S+\s*$/, "\n");

rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
for (const [name, path, file] of FILES) writeFileSync(join(target, file), adapt(read(name, path)));
for (const [file, text] of Object.entries(TYPES)) writeFileSync(join(target, file), text);

const rows = [];
for (const name of new Set(FILES.map(([each]) => each))) {
  const { version, license } = JSON.parse(read(name, "package.json"));
  writeFileSync(join(target, `LICENSE-${name}`), read(name, "LICENSE"));
  const files = FILES.filter(([each]) => each === name).map(([, , file]) => `\`${file}\``);
  rows.push(`| ${name} | ${version} | [${license}](LICENSE-${name}) | ${files.join(", ")} |`);
}
writeFileSync(
  join(target, "README.md"),
  `# Of others

What the console's page loads that was not written here, as its authors publish it on npm. Only the names of imports
are changed, and the references to source maps are left out.

| | Version | Licence | Files |
|---|---|---|---|
${rows.join("\n")}

To renew one, change its version in \`clients/console/package.json\`, and run \`npm install\` there and \`make vendor\`. A
test compares these files with what npm has.
`,
);
