// moleculer-io on the port given as argument. /readyz answers 200 once the service is found. jsonwebtoken checks the
// tokens, because moleculer-io leaves that to the application.

import http from "node:http";
import jwt from "jsonwebtoken";
import SocketIO from "moleculer-io";

import { createBroker, endWithParent } from "./broker.mjs";

endWithParent();
const port = Number(process.argv[2]);
const key = process.env.NUROPB_GATEWAY_JWT_KEY;
const algorithms = [process.env.NUROPB_GATEWAY_JWT_ALGORITHMS];
let ready = false;
const server = http.createServer((request, response) => {
    response.statusCode = ready ? 200 : 503;
    response.end();
});

const broker = createBroker(`bench-gateway-${port}`);
broker.createService({
    name: "io",
    mixins: [SocketIO],
    settings: {
        server: false,
        io: {
            options: { transports: ["websocket"], serveClient: false },
            namespaces: { "/": { authorization: true, events: { call: {} } } },
        },
    },
    methods: {
        socketAuthorize(socket) {
            const claims = jwt.verify(socket.handshake.auth.token, key, { algorithms });
            return { id: claims.sub };
        },
    },
    created() {
        this.server = server;
    },
});
await broker.start();
server.listen(port, "127.0.0.1", 2048);
await broker.waitForServices("bench");
ready = true;
