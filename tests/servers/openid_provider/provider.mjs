// An OpenID provider on the loopback, for tests/servers/openid.py: it runs until its standard input ends.
//
// Each line there is what it is from then on, as JSON: {"port": ..., "keys": [...], "published": [...]}, where `keys`
// are private JSON web keys, the first of which signs, and `published` is added to what /jwks shows. It answers READY.

import { createServer } from "node:http";
import { createInterface } from "node:readline";

// Of Node.js 22, and what oidc-provider 9 needs; Debian 12 has Node.js 18.
URL.parse ??= (url, base) => (URL.canParse(url, base) ? new URL(url, base) : null);
const { Provider } = await import("oidc-provider");

const CLIENTS = [
  {
    client_id: "script",
    client_secret: "of-the-script",
    grant_types: ["client_credentials"],
    response_types: [],
    redirect_uris: [],
  },
  {
    client_id: "browser",
    application_type: "native", // which may have http://127.0.0.1 for its own
    token_endpoint_auth_method: "none",
    grant_types: ["authorization_code"],
    response_types: ["code"],
    redirect_uris: ["http://127.0.0.1/callback"],
  },
];

function makeProvider(issuer, { keys, published }) {
  const provider = new Provider(issuer, {
    clients: CLIENTS,
    jwks: { keys },
    scopes: ["openid", "orders"],
    pkce: { required: () => true },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: true }, // a form that takes any login and any password
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          audience: resource.replace("urn:", ""),
          scope: "orders",
          accessTokenFormat: "jwt",
          accessTokenTTL: 600,
          jwt: { sign: { alg: keys[0].alg } },
        }),
      },
    },
  });
  provider.use(async (context, next) => {
    await next();
    if (context.oidc?.route === "jwks") {
      context.body = { keys: [...context.body.keys, ...published] };
    }
  });
  return provider.callback();
}

let handle;
let server;
for await (const line of createInterface({ input: process.stdin })) {
  const settings = JSON.parse(line);
  handle = makeProvider(`http://127.0.0.1:${settings.port}`, settings);
  if (server === undefined) {
    server = createServer((request, response) => handle(request, response));
    await new Promise((listening) => server.listen(settings.port, "127.0.0.1", listening));
  }
  console.log("READY");
}
process.exit(0);
