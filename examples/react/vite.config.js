import { defineConfig } from "vite";

const gateway = process.env.ORDERS_URL ?? "http://127.0.0.1:8000";

export default defineConfig({
  server: {
    // What the page asks for is the application's, so that both have the same origin, as in production.
    proxy: {
      "/gateway": { target: gateway, ws: true },
      "/sign-in": gateway,
    },
    // The client lies beside this example, not in node_modules.
    fs: { allow: [".", "../../clients/js"] },
  },
  // Whatever is not found at the start would reload the page later.
  optimizeDeps: { include: ["react", "react-dom/client", "react/jsx-runtime", "react/jsx-dev-runtime"] },
});
