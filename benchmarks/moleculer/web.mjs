// moleculer-web on the port given as argument: POST /rpc/bench/echo. jsonwebtoken checks the tokens, because
// moleculer-web leaves that to the application.

import http from "node:http";
import jwt from "jsonwebtoken";
import ApiGateway from "moleculer-web";

import { createBroker, endWithParent } from "./broker.mjs";

endWithParent();
const port = Number(process.argv[2]);
const key = process.env.NUROPB_GATEWAY_JWT_KEY;
const algorithms = [process.env.NUROPB_GATEWAY_JWT_ALGORITHMS];

const broker = createBroker(`bench-web-${port}`);
const service = broker.createService({
    name: "api",
    mixins: [ApiGateway],
    settings: {
        server: false,
        logRequest: null,
        logResponse: null,
        routes: [
            {
                path: "/rpc",
                authentication: true,
                mappingPolicy: "restrict",
                aliases: { "POST bench/echo": "bench.echo" },
                bodyParsers: { json: true },
            },
        ],
    },
    methods: {
        authenticate(ctx, route, request) {
            const claims = jwt.verify(request.headers.authorization.slice("Bearer ".length), key, { algorithms });
            return { id: claims.sub };
        },
    },
});
await broker.start();
await broker.waitForServices("bench");
const handle = service.express();
const server = http.createServer((request, response) => {
    if (request.url === "/readyz") response.end();
    else handle(request, response, error => response.writeHead(500).end(String(error)));
});
server.listen(port, "127.0.0.1", 2048);
