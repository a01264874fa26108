import { defineConfig } from "vite";

// One module, not minified: what a page loads is what a debugger shows. The comments are in the sources.
export default defineConfig({
  build: {
    target: "es2022",
    minify: false,
    emptyOutDir: true,
    rolldownOptions: { output: { comments: { annotation: false, jsdoc: false, legal: false } } },
    lib: { entry: "src/index.ts", formats: ["es"], fileName: () => "client.js" },
  },
});
