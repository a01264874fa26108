import { defineConfig } from "vite";

/** @type {import("vite").Rolldown.OutputOptions} */
export const MINIFIED = {
  comments: { annotation: false, jsdoc: false, legal: false },
  minify: {
    // Names of classes are those of errors.
    mangle: { keepNames: { class: true, function: false } },
    compress: { keepNames: { class: true, function: false } },
  },
};

// The module that the gateway serves, in as few bytes as pages need.
export default defineConfig({
  build: {
    target: "es2022",
    minify: false,
    emptyOutDir: true,
    rolldownOptions: { output: MINIFIED },
    lib: { entry: "src/page.ts", formats: ["es"], fileName: () => "client.js" },
  },
});
