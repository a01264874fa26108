// The entry nuropb-gateway-client/upload: a file, cut into calls of a method that a service of yours has.

import { encodeBase64 } from "./base64.js";
import type { Client } from "./client.js";
import { randomKey } from "./random.js";

/** What to upload, and to which method. */
export interface UploadOptions {
  /** The method gets `{ ...params, upload, size, offset, data }`, and returns `{ received }`, or `{ received, result }`. */
  service: string;
  method: string;
  /** Further parameters of each call: the name of the file, for example. */
  params?: object | undefined;
  /** The id of the upload. An upload with the same id goes on where the service is. Default: a random one. */
  id?: string | undefined;
  /** Bytes of the file in each call. Default: as many as the gateway's limit of a message allows, 512 KiB at most. */
  chunkSize?: number | undefined;
  /** Called after each call, with the number of bytes that the service has. */
  onProgress?: ((received: number, size: number) => void) | undefined;
  /** Aborting it stops the upload, which fails with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Milliseconds for each call. Default: the gateway's. */
  timeout?: number | undefined;
  /** How often a `retryable` failure of a call is repeated. Default: 5. */
  retries?: number | undefined;
}

/** Bytes of a frame beside the file's, for names, ids and `params`. */
const OVERHEAD = 2048;
const MAX_CHUNK = 512 * 1024;

/**
 * Upload a file, and return the `result` of the call with its last bytes. Progress that the service has made before, in
 * an upload with the same `id`, is kept. Each call is idempotent: `offset` says where its bytes belong, so the service
 * takes those that it has not yet, and returns as `received` the number of bytes that it has.
 *
 * Throws RangeError for a service that returns no such number or takes no bytes, and the errors of calls.
 */
export async function upload<Result = unknown>(
  client: Client,
  file: Blob | ArrayBuffer | ArrayBufferView,
  options: UploadOptions,
): Promise<Result> {
  const { service, method, params, id = randomKey(), onProgress, signal, timeout, retries = 5 } = options;
  const size = file instanceof Blob ? file.size : file.byteLength;
  const call = async (more: object) => {
    const own = { idempotent: true, retries, signal, timeout };
    const answer = await client.request<{ received?: unknown; result?: Result } | null>(
      service,
      method,
      { ...params, upload: id, size, ...more },
      own,
    );
    const received = answer?.received;
    if (typeof received !== "number" || !(Number.isInteger(received) && received >= 0 && received <= size)) {
      throw new RangeError(`${service}.${method} must return { received }: a number of bytes from 0 to ${size}`);
    }
    onProgress?.(received, size);
    return { received, result: answer?.result as Result };
  };

  // Without an offset, the service says how much it has.
  let { received, result } = await call({});
  while (received < size) {
    const end = Math.min(size, received + (options.chunkSize ?? chunkSizeOf(client, params)));
    const data = { $bytes: encodeBase64(await bytesOf(file, received, end)) };
    const before = received;
    ({ received, result } = await call({ offset: before, data }));
    if (received <= before) throw new RangeError(`${service}.${method} took no bytes at ${before}`);
  }
  return result;
}

function chunkSizeOf({ hello }: Client, params: object | undefined): number {
  const room = (hello?.limits.max_message_size ?? 65536) - OVERHEAD - JSON.stringify(params ?? {}).length * 3;
  return Math.max(1, Math.min(MAX_CHUNK, Math.floor(room / 4) * 3));
}

async function bytesOf(file: Blob | ArrayBuffer | ArrayBufferView, start: number, end: number): Promise<Uint8Array> {
  if (file instanceof Blob) return new Uint8Array(await file.slice(start, end).arrayBuffer());
  if (ArrayBuffer.isView(file)) return new Uint8Array(file.buffer, file.byteOffset + start, end - start);
  return new Uint8Array(file, start, end - start);
}
