import { defineConfig } from "vite";

// The module that the gateway serves, in as few bytes as pages need. Names of classes are those of errors.
export default defineConfig({
  build: {
    target: "es2022",
    minify: false,
    emptyOutDir: true,
    rolldownOptions: {
      output: {
        comments: { annotation: false, jsdoc: false, legal: false },
        minify: {
          mangle: { keepNames: { class: true, function: false } },
          compress: { keepNames: { class: true, function: false } },
        },
      },
    },
    lib: { entry: "src/page.ts", formats: ["es"], fileName: () => "client.js" },
  },
});
