// Builds the modules of the package, for bundlers and Node, minified as the gateway's module is. The maps lead to the
// sources. Each entry is one file beside the main module, which it imports, so that an application has one client.

import { build } from "vite";
import { MINIFIED } from "./vite.config.js";

/** The entries, with their formats. A worker is an ES module, and so is the entry that has to find its file. */
const ENTRIES = [
  { entry: "src/index.ts", name: "index", formats: ["es", "cjs"] },
  { entry: "src/react.ts", name: "react", formats: ["es", "cjs"] },
  { entry: "src/json.ts", name: "json", formats: ["es", "cjs"] },
  { entry: "src/upload.ts", name: "upload", formats: ["es", "cjs"] },
  { entry: "src/testing.ts", name: "testing", formats: ["es", "cjs"] },
  { entry: "src/event-source.ts", name: "event-source", formats: ["es", "cjs"] },
  { entry: "src/tabs.ts", name: "shared", formats: ["es"] },
  { entry: "src/tabs.worker.ts", name: "nuropb-gateway-worker", formats: ["es"] },
];

for (const { entry, name, formats } of ENTRIES) {
  await build({
    configFile: false,
    logLevel: "error",
    plugins: [
      {
        name: "nuropb-gateway-client",
        generateBundle({ format }, bundle) {
          for (const chunk of Object.values(bundle)) {
            // Bundlers know the expression without Vite's addition.
            if (chunk.type === "chunk") chunk.code = chunk.code.replace('"" + import.meta.url', "import.meta.url");
          }
          // Without it, Node and TypeScript would take the files beside it for modules, as in the rest of the package.
          if (format !== "cjs") return;
          // The main module of the same kind is beside the entry: an application has one client.
          for (const chunk of Object.values(bundle)) {
            if (chunk.type === "chunk") chunk.code = chunk.code.replaceAll('require("../index.js")', 'require("./index.js")');
          }
          this.emitFile({ type: "asset", fileName: "cjs/package.json", source: '{ "type": "commonjs" }\n' });
        },
      },
    ],
    build: {
      target: "es2022",
      minify: false,
      emptyOutDir: false,
      sourcemap: name !== "nuropb-gateway-worker",
      rolldownOptions: {
        external: (id) => id === "react" || (id === "./index.js" && name !== "index"),
        // Bundlers find the URL of the worker only between plain quotes.
        output: name === "shared" ? {} : MINIFIED,
      },
      lib: {
        entry,
        formats: /** @type {("es" | "cjs")[]} */ (formats),
        fileName: (format) => (format === "es" ? `${name}.js` : `cjs/${name}.js`),
      },
    },
  });
}
