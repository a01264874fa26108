// The script of the worker of shared connections.

import { type WorkerScope, serve } from "./worker.js";

serve(globalThis as unknown as WorkerScope);
