// The echo service in Moleculer's own protocol. Prints READY once it is connected.

import { createBroker, endWithParent } from "./broker.mjs";

endWithParent();
const broker = createBroker("bench-service");
broker.createService({ name: "bench", actions: { echo: ctx => ctx.params } });
await broker.start();
console.log("READY");
