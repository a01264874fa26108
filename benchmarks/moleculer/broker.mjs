// Code shared by the gateway and the service.

import { ServiceBroker } from "moleculer";

export function createBroker(nodeID) {
    return new ServiceBroker({
        nodeID,
        logger: false,
        transporter: {
            type: "AMQP",
            // Moleculer's defaults would dominate the figures: one message at a time, and Nagle's algorithm.
            options: { url: process.env.NUROPB_GATEWAY_MESH_URL, prefetch: 1000, socketOptions: { noDelay: true } },
        },
    });
}

// Standard input is a pipe from the parent process; it closes when the parent ends, for whatever reason.
export function endWithParent() {
    process.stdin.resume();
    process.stdin.on("end", () => process.exit(0));
}
