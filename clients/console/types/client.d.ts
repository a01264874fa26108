// `/client.js`, as the gateway serves it beside the console.
export * from "../../js/src/index.js";
