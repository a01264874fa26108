import { defineConfig } from "vite";

const gateway = process.env.ORDERS_URL ?? "http://127.0.0.1:8000";

export default defineConfig({
  server: {
    // Requests of the page are forwarded to the application, so that both have the same origin, as in production.
    proxy: {
      "/gateway": { target: gateway, ws: true },
      "/sign-in": gateway,
    },
    // The client is in another directory of the repository, not in node_modules.
    fs: { allow: [".", "../../clients/js"] },
  },
  // Its hooks use the React of this application.
  resolve: { dedupe: ["react"] },
  // Dependencies that are found later would reload the page.
  optimizeDeps: { include: ["react", "react-dom/client", "react/jsx-runtime", "react/jsx-dev-runtime"] },
});
