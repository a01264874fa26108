// What the gateway and the service have in common.

import { ServiceBroker } from "moleculer";

export function createBroker(nodeID) {
    return new ServiceBroker({
        nodeID,
        logger: false,
        transporter: {
            type: "AMQP",
            // Moleculer's own defaults would be what is measured: one message at a time, and Nagle's algorithm.
            options: { url: process.env.NUROPB_GATEWAY_MESH_URL, prefetch: 1000, socketOptions: { noDelay: true } },
        },
    });
}

// The pipe is closed by the end of whoever started this process, however that comes about.
export function endWithParent() {
    process.stdin.resume();
    process.stdin.on("end", () => process.exit(0));
}
