import { defineConfig } from "vite";

// The modules of the package, for bundlers and Node, minified as the gateway's module is. The map leads to the sources.
export default defineConfig({
  plugins: [
    {
      name: "commonjs",
      generateBundle({ format }) {
        // Without it, Node and TypeScript would take the files beside it for modules, as in the rest of the package.
        if (format !== "cjs") return;
        this.emitFile({ type: "asset", fileName: "cjs/package.json", source: '{ "type": "commonjs" }\n' });
      },
    },
  ],
  build: {
    target: "es2022",
    minify: false,
    emptyOutDir: false,
    sourcemap: true,
    rolldownOptions: {
      output: {
        comments: { annotation: false, jsdoc: false, legal: false },
        minify: {
          mangle: { keepNames: { class: true, function: false } },
          compress: { keepNames: { class: true, function: false } },
        },
      },
    },
    lib: {
      entry: "src/index.ts",
      formats: ["es", "cjs"],
      fileName: (format) => (format === "es" ? "index.js" : "cjs/index.js"),
    },
  },
});
