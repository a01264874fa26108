// src/backoff.ts
var BACKOFF = {
	base: 500,
	cap: 3e4,
	random: Math.random
};
function jittered({ base, cap, random }, attempt) {
	return random() * Math.min(cap, base * 2 ** attempt);
}
function after(milliseconds, run) {
	return setTimeout(run, Math.min(Math.max(0, milliseconds), 2 ** 31 - 1));
}
// src/errors.ts
var GatewayError = class extends Error {
	code;
	constructor(code, message, options) {
		super(message, options);
		this.name = new.target.name;
		this.code = code;
	}
};
var CallFailed = class extends GatewayError {
	retryable;
	retryAfter;
	traceId;
	error;
	constructor(error, traceId = null) {
		const code = codeOf(error);
		super(code, typeof error.description === "string" ? error.description : code);
		this.retryable = error.retryable === true;
		this.retryAfter = milliseconds(error.retry_after_ms);
		this.traceId = traceId;
		this.error = typeof error.error === "string" ? error.error : "";
	}
};
var BadRequest = class extends CallFailed {};
var InvalidParams = class extends CallFailed {};
var Unauthenticated = class extends CallFailed {};
var PermissionDenied = class extends CallFailed {};
var MethodNotFound = class extends CallFailed {};
var DuplicateId = class extends CallFailed {};
var ServiceUnavailable = class extends CallFailed {};
var MeshUnavailable = class extends CallFailed {};
var CallTimeout = class extends CallFailed {};
var Cancelled = class extends CallFailed {};
var TooManyRequests = class extends CallFailed {};
var PayloadTooLarge = class extends CallFailed {};
var Deprecated = class extends CallFailed {};
var ServiceError = class extends CallFailed {};
var InternalError = class extends CallFailed {};
var CLASSES = {
	bad_request: BadRequest,
	invalid_params: InvalidParams,
	unauthenticated: Unauthenticated,
	permission_denied: PermissionDenied,
	method_not_found: MethodNotFound,
	duplicate_id: DuplicateId,
	service_unavailable: ServiceUnavailable,
	mesh_unavailable: MeshUnavailable,
	timeout: CallTimeout,
	cancelled: Cancelled,
	too_many_requests: TooManyRequests,
	payload_too_large: PayloadTooLarge,
	deprecated: Deprecated,
	service_error: ServiceError,
	internal: InternalError
};
var ConnectionLost = class extends GatewayError {
	closeCode;
	reason;
	constructor(closeCode, reason, options) {
		super("connection_lost", `the connection was lost (${describe(closeCode, reason)})`, options);
		this.closeCode = closeCode;
		this.reason = reason;
	}
};
var ConnectionClosed = class extends GatewayError {
	closeCode;
	reason;
	constructor(closeCode, reason, options) {
		super("connection_closed", `the client is closed (${describe(closeCode, reason)})`, options);
		this.closeCode = closeCode;
		this.reason = reason;
	}
};
var Unsubscribed = class extends GatewayError {
	topics;
	reason;
	constructor(topics, reason) {
		super("unsubscribed", `the subscription to ${topics.join(", ")} has ended: ${reason}`);
		this.topics = topics;
		this.reason = reason;
	}
};
var TokenRefreshFailed = class extends GatewayError {
	constructor(cause) {
		super("token_refresh", "the token could not be replaced", { cause });
	}
};
var UnexpectedFrame = class extends GatewayError {
	constructor(message) {
		super("unexpected_frame", message);
	}
};
function callFailed(error, traceId = null) {
	const code = codeOf(error);
	return new (Object.hasOwn(CLASSES, code) ? CLASSES[code] : CallFailed)(error, traceId);
}
var MAX_WAIT = 6e4;
function obeyed(retryAfter) {
	return Math.min(retryAfter ?? 0, MAX_WAIT);
}
function milliseconds(value) {
	return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
}
function isFinal(closeCode) {
	return closeCode >= 4500 && closeCode < 5e3 || closeCode === 1003 || closeCode === 1007 || closeCode === 1009;
}
function codeOf({ code }) {
	return typeof code === "string" ? code : "internal";
}
function describe(closeCode, reason) {
	return reason ? `${closeCode}: ${reason}` : `${closeCode}`;
}
// src/calls.ts
var LIMITS = {
	maxMessageSize: 65536,
	maxInFlight: 64,
	requestTimeout: 3e4
};
var encoder = new TextEncoder();
var Calls = class {
	limits = LIMITS;
	#settings;
	#waiting = new Set();
	#inFlight = new Map();
	#pausing = new Set();
	#lastId = 0;
	#weight = 0;
	#send = null;
	#held = true;
	constructor(settings) {
		this.#settings = settings;
	}
	call(kind, payload, options = {}) {
		const { timeout, signal, idempotent, retries, traceId } = options;
		if (timeout !== void 0 && !(timeout > 0 && Number.isFinite(timeout))) throw new RangeError("timeout must be a number of milliseconds greater than 0");
		if (signal?.aborted) return Promise.reject(signal.reason);
		if (this.#waiting.size >= this.#settings.maxQueue) {
			const description = `${this.#settings.maxQueue} calls are already waiting to be sent; wait for an answer first`;
			return Promise.reject(new TooManyRequests({
				code: "too_many_requests",
				description,
				retryable: true
			}));
		}
		const members = membersOf({
			...payload,
			trace_id: traceId
		});
		const deadline = performance.now() + (timeout ?? this.limits.requestTimeout);
		const { promise, call } = makeCall(kind, members, deadline);
		call.idempotent = idempotent === true || kind === "describe";
		call.retries = retries ?? 0;
		call.timer = after(deadline - performance.now(), () => this.#expire(call));
		if (signal) {
			const abort = () => this.#abandon(call, signal.reason);
			signal.addEventListener("abort", abort, { once: true });
			const stop = () => signal.removeEventListener("abort", abort);
			promise.then(stop, stop);
		}
		this.#waiting.add(call);
		this.#flush();
		return promise;
	}
	ask(kind, payload) {
		const { promise, call } = makeCall(kind, membersOf(payload), Infinity);
		this.#transmit(call);
		return promise;
	}
	connected(send) {
		this.#send = send;
		this.#held = true;
	}
	release() {
		this.#held = false;
		this.#flush();
	}
	hold() {
		this.#held = true;
	}
	get inFlight() {
		return this.#inFlight.size;
	}
	answer(payload) {
		const call = typeof payload.id === "string" ? this.#inFlight.get(payload.id) : void 0;
		if (call === void 0) return new UnexpectedFrame("the gateway sent a response to no call in flight");
		this.#land(payload.id, call);
		let unexpected = null;
		if (call.abandoned) clearTimeout(call.timer);
		else if (isObject(payload.error)) this.#failed(call, payload.error, typeof payload.trace_id === "string" ? payload.trace_id : null);
		else if ((payload.error === null || payload.error === void 0) && "result" in payload) {
			this.#settle(call);
			call.resolve(payload.result);
		} else {
			this.#settle(call);
			call.reject(unexpected = new UnexpectedFrame("the gateway sent a response with neither result nor error"));
		}
		this.#flush();
		return unexpected;
	}
	lost(error) {
		this.#send = null;
		this.#held = true;
		const again = [];
		for (const [id, call] of this.#inFlight) {
			this.#land(id, call);
			if (call.abandoned) clearTimeout(call.timer);
			else if (call.idempotent) again.push(call);
			else this.#reject(call, error);
		}
		if (again.length > 0) this.#waiting = new Set([...again, ...this.#waiting]);
		for (const call of again) this.#arm(call, call.deadline);
	}
	close(error) {
		this.lost(error);
		for (const call of [...this.#waiting, ...this.#pausing]) this.#reject(call, error);
		this.#waiting.clear();
		this.#pausing.clear();
	}
	#flush() {
		for (const call of this.#waiting) {
			if (this.#held || this.#weight >= this.limits.maxInFlight) return;
			this.#waiting.delete(call);
			this.#transmit(call);
		}
	}
	#transmit(call) {
		const id = call.id = String(++this.#lastId);
		let text = `{"type":"${call.kind}","payload":{"id":"${id}"${call.members}`;
		if (call.kind === "request") text += `,"timeout":${Math.max(1, Math.round(call.deadline - performance.now())) / 1e3}`;
		text += "}}";
		if (this.#isTooBig(text)) {
			const description = `the frame exceeds the gateway's limit of ${this.limits.maxMessageSize} bytes`;
			this.#reject(call, new PayloadTooLarge({
				code: "payload_too_large",
				description
			}));
			return;
		}
		this.#inFlight.set(id, call);
		this.#weight += weight(call);
		if (call.deadline < Infinity) this.#arm(call, call.deadline + this.#settings.grace);
		this.#send?.(text);
	}
	#isTooBig(text) {
		const size = this.limits.maxMessageSize;
		return text.length > size || text.length * 3 > size && encoder.encode(text).length > size;
	}
	#land(id, call) {
		this.#inFlight.delete(id);
		this.#weight -= weight(call);
	}
	#arm(call, moment) {
		clearTimeout(call.timer);
		call.timer = after(moment - performance.now(), () => this.#expire(call));
	}
	#settle(call) {
		clearTimeout(call.timer);
		clearTimeout(call.pause);
	}
	#reject(call, error) {
		this.#settle(call);
		call.reject(error);
	}
	#failed(call, error, traceId) {
		const failure = callFailed(error, traceId);
		const wait = Math.max(failure.retryAfter ?? 0, jittered(this.#settings.backoff, call.attempt));
		if (!failure.retryable || call.attempt >= call.retries || performance.now() + wait >= call.deadline) {
			this.#reject(call, failure);
			return;
		}
		call.attempt++;
		this.#arm(call, call.deadline);
		this.#pausing.add(call);
		call.pause = after(wait, () => {
			this.#pausing.delete(call);
			this.#waiting.add(call);
			this.#flush();
		});
	}
	#expire(call) {
		const sent = !this.#waiting.has(call) && !this.#pausing.has(call);
		const description = sent ? "No answer in time; whether it ran is unknown" : "The call could not be sent in time";
		this.#abandon(call, new CallTimeout({
			code: "timeout",
			description,
			retryable: !sent
		}));
	}
	#abandon(call, reason) {
		if (this.#waiting.delete(call) || this.#pausing.delete(call)) {
			this.#reject(call, reason);
			return;
		}
		const { id } = call;
		call.abandoned = true;
		call.reject(reason);
		clearTimeout(call.timer);
		call.timer = after(this.#settings.grace, () => {
			if (this.#inFlight.get(id) === call) {
				this.#land(id, call);
				this.#flush();
			}
		});
		if (call.kind === "request") this.#send?.(`{"type":"cancel","payload":{"id":"${id}"}}`);
	}
};
function weight(call) {
	return call.kind === "request" || call.kind === "command" ? 1 : 0;
}
function makeCall(kind, members, deadline) {
	let resolve;
	let reject;
	return {
		promise: new Promise((resolve_, reject_) => {
			resolve = resolve_;
			reject = reject_;
		}),
		call: {
			kind,
			id: "",
			members,
			idempotent: false,
			deadline,
			retries: 0,
			attempt: 0,
			abandoned: false,
			timer: void 0,
			pause: void 0,
			resolve,
			reject
		}
	};
}
function membersOf(payload) {
	const text = JSON.stringify(payload).slice(1, -1);
	return text && `,${text}`;
}
function isObject(value) {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}
// src/emitter.ts
var Emitter = class {
	#listeners = new Map();
	on(name, listener) {
		const listeners = this.#listeners.get(name) ?? new Set();
		this.#listeners.set(name, listeners);
		const entry = (value) => listener(value);
		listeners.add(entry);
		return () => void listeners.delete(entry);
	}
	emit(name, value) {
		const listeners = [...this.#listeners.get(name) ?? []];
		for (const listener of listeners) guarded(() => listener(value));
		return listeners.length > 0;
	}
};
function guarded(run) {
	try {
		run();
	} catch (error) {
		queueMicrotask(() => {
			throw error;
		});
	}
}
// src/topics.ts
function matches(pattern, topic) {
	const expected = words(pattern);
	const given = words(topic);
	let at = 0;
	let position = 0;
	let afterHash = -1;
	let resume = 0;
	while (position < given.length) {
		const word = expected[at];
		if (word === "#") {
			afterHash = ++at;
			resume = position;
		} else if (word !== void 0 && (word === "*" || word === given[position])) {
			at++;
			position++;
		} else if (afterHash >= 0) {
			at = afterHash;
			position = ++resume;
		} else return false;
	}
	return expected.slice(at).every((word) => word === "#");
}
function words(text) {
	return text === "" ? [] : text.split(".");
}
// src/subscriptions.ts
var Subscription = class {
	topics;
	#emitter = new Emitter();
	#callback;
	#size;
	#leave;
	#ready;
	#resolve;
	#reject;
	#isReady = false;
	#isWatched = false;
	#ended = null;
	#buffer = [];
	#dropped = 0;
	#wake = null;
	constructor(topics, callback, size, leave) {
		this.topics = topics;
		this.#callback = callback;
		this.#size = size;
		this.#leave = () => leave(this);
		this.#ready = new Promise((resolve, reject) => {
			this.#resolve = resolve;
			this.#reject = reject;
		});
		this.#ready.catch(() => {});
	}
	get ready() {
		this.#isWatched = true;
		return this.#ready;
	}
	on(name, listener) {
		return this.#emitter.on(name, listener);
	}
	unsubscribe() {
		this.#leave();
	}
	async *[Symbol.asyncIterator]() {
		this.#isWatched = true;
		try {
			for (;;) {
				if (this.#dropped > 0) {
					const count = this.#dropped;
					this.#dropped = 0;
					this.tell("dropped", {
						count,
						topic: null
					});
				}
				const event = this.#buffer.shift();
				if (event !== void 0) yield event;
				else if (this.#ended !== null) {
					if (this.#ended.error !== null) throw this.#ended.error;
					return;
				} else await new Promise((resolve) => this.#wake = resolve);
			}
		} finally {
			this.#leave();
		}
	}
	wants(topic) {
		return this.topics.some((pattern) => matches(pattern, topic));
	}
	deliver(event) {
		const own = event;
		const callback = this.#callback;
		if (callback !== null) {
			guarded(() => callback(own));
			return;
		}
		if (this.#buffer.length >= this.#size) {
			this.#buffer.shift();
			this.#dropped++;
		}
		this.#buffer.push(own);
		this.#wake?.();
	}
	tell(name, value) {
		this.#emitter.emit(name, value);
	}
	inForce() {
		const before = this.#isReady;
		this.#isReady = true;
		this.#resolve(this);
		return before;
	}
	end(error, reason) {
		if (this.#ended !== null) return true;
		this.#ended = { error };
		const told = this.#isReady ? this.#callback === null || error === null : this.#isWatched || error === null;
		this.#reject(error ?? reason);
		this.#wake?.();
		return this.#emitter.emit("ended", error) || told;
	}
};
var Subscriptions = class {
	#host;
	#all = new Set();
	#timers = new Set();
	#link = null;
	constructor(host) {
		this.#host = host;
	}
	add(subscription) {
		this.#all.add(subscription);
		if (this.#link !== null) this.#enforce([subscription]);
	}
	end(subscription, error) {
		if (!this.#remove(subscription, error)) return;
		const others = this.#patterns(this.#all);
		const topics = subscription.topics.filter((topic) => !others.includes(topic));
		if (this.#link !== null && topics.length > 0) this.#host.ask("unsubscribe", { topics }).catch((reason) => {
			if (reason instanceof ConnectionLost || reason instanceof ConnectionClosed) return;
			this.#host.tell("warning", reason);
		});
	}
	#remove(subscription, error) {
		if (!this.#all.delete(subscription)) return false;
		const cause = error ?? new Unsubscribed(subscription.topics, "by the application");
		if (!subscription.end(error, cause)) this.#host.tell("warning", cause);
		return true;
	}
	connected() {
		this.#link = {};
		if (this.#all.size > 0) this.#enforce([...this.#all]);
	}
	disconnected() {
		this.#link = null;
		for (const timer of this.#timers) clearTimeout(timer);
		this.#timers.clear();
	}
	close(error) {
		this.disconnected();
		const all = [...this.#all];
		this.#all.clear();
		for (const each of all) each.end(error, error ?? new ConnectionClosed(1e3, "by the application"));
	}
	dispatch(event) {
		for (const subscription of [...this.#all]) if (subscription.wants(event.topic)) subscription.deliver(event);
	}
	notice(topic, event) {
		if (topic !== "gap" && topic !== "dropped" && topic !== "unsubscribed") return false;
		const payload = isObject(event) ? event : {};
		const topics = Array.isArray(payload.topics) ? payload.topics.map(String) : null;
		const concerned = [...this.#all].filter((each) => topics === null || each.topics.some((pattern) => topics.includes(pattern)));
		const reason = String(payload.reason ?? "");
		if (topic === "gap") this.#gap({
			reason,
			topics: topics ?? this.#patterns(this.#all)
		}, concerned);
		else if (topic === "dropped") {
			const about = typeof payload.topic === "string" ? payload.topic : null;
			const dropped = {
				count: Number(payload.count ?? 1),
				topic: about
			};
			this.#host.tell("dropped", dropped);
			for (const each of concerned) if (about === null || each.wants(about) || each.topics.includes(about)) each.tell("dropped", dropped);
		} else if (topics !== null) {
			this.#host.tell("unsubscribed", {
				topics,
				reason
			});
			for (const each of concerned) this.end(each, new Unsubscribed(each.topics, reason));
		}
		return true;
	}
	async #enforce(subscriptions, attempt = 0) {
		const link = this.#link;
		const wanted = subscriptions.filter((each) => this.#all.has(each));
		if (wanted.length === 0) return;
		try {
			await this.#host.ask("subscribe", { topics: this.#patterns(wanted) });
		} catch (error) {
			if (this.#link !== link || error instanceof ConnectionLost) return;
			if (error instanceof CallFailed && error.retryable) {
				const timer = after(Math.max(obeyed(error.retryAfter), jittered(this.#host.backoff, attempt)), () => {
					this.#timers.delete(timer);
					this.#enforce(wanted, attempt + 1);
				});
				this.#timers.add(timer);
			} else if (wanted.length > 1) for (const each of wanted) this.#enforce([each]);
			else this.#remove(wanted[0], error);
			return;
		}
		if (this.#link !== link) return;
		const again = wanted.filter((each) => each.inForce());
		if (again.length > 0) this.#gap({
			reason: "reconnected",
			topics: this.#patterns(again)
		}, again);
	}
	#gap(gap, concerned) {
		this.#host.tell("gap", gap);
		for (const each of concerned) each.tell("gap", gap);
	}
	#patterns(subscriptions) {
		return [...new Set([...subscriptions].flatMap((each) => each.topics))];
	}
};
// src/client.ts
var MAX_PING_INTERVAL = 3e4;
var GOODBYE_TIMEOUT = 3e4;
var BROKEN = 1006;
var INVALID_TOKEN = 4510;
var Client = class {
	url;
	#options;
	#backoff;
	#emitter = new Emitter();
	#calls;
	#subscriptions;
	#state = { name: "connecting" };
	#hello = null;
	#link = null;
	#attempt = 0;
	#reconnection;
	#isAsked = false;
	#renewed = false;
	#stopListening = () => {};
	constructor(url, options) {
		this.url = url;
		this.#options = options;
		this.#backoff = {
			...BACKOFF,
			...options.backoff
		};
		this.#calls = new Calls({
			backoff: this.#backoff,
			grace: options.grace ?? 2e3,
			maxQueue: options.maxQueue ?? 1e4
		});
		this.#subscriptions = new Subscriptions({
			ask: (kind, payload) => this.#calls.ask(kind, payload),
			tell: (name, value) => this.#tell(name, value),
			backoff: this.#backoff
		});
		if (typeof addEventListener === "function" && typeof removeEventListener === "function") {
			const online = () => this.#online();
			addEventListener("online", online);
			this.#stopListening = () => removeEventListener("online", online);
		}
		this.#connect("connect");
	}
	get state() {
		return this.#state;
	}
	get hello() {
		return this.#hello;
	}
	on(name, listener) {
		return this.#emitter.on(name, listener);
	}
	async request(service, method, params = {}, options = {}) {
		return await this.#call("request", {
			service,
			method,
			params: checked(params)
		}, options);
	}
	async command(service, method, params = {}, options = {}) {
		await this.#call("command", {
			service,
			method,
			params: checked(params)
		}, options);
	}
	async describe(service, options = {}) {
		return await this.#call("describe", { service }, options);
	}
	subscribe(topics, callback, options = {}) {
		const wanted = typeof topics === "string" ? [topics] : [...topics];
		if (wanted.length === 0) throw new TypeError("topics is empty: name at least one topic");
		const subscription = new Subscription(wanted, callback ?? null, options.buffer ?? 1e3, (each) => this.#subscriptions.end(each, null));
		if (this.#state.name === "closed") {
			const error = this.#state.error ?? closedByApplication();
			subscription.end(error, error);
			return subscription;
		}
		this.#subscriptions.add(subscription);
		options.signal?.addEventListener("abort", () => subscription.unsubscribe(), { once: true });
		if (options.signal?.aborted) subscription.unsubscribe();
		return subscription;
	}
	async authorize(token) {
		if (this.#state.name !== "open") throw new ConnectionLost(BROKEN, "not connected");
		const link = this.#link;
		const result = await this.#calls.ask("authorize", { token });
		const expiresAt = isObject(result) && typeof result.expires_at === "number" ? result.expires_at : null;
		if (this.#hello !== null && this.#link === link && link !== null) {
			this.#hello = {
				...this.#hello,
				expires_at: expiresAt
			};
			this.#planRefresh(link);
		}
		return expiresAt;
	}
	close() {
		if (this.#state.name !== "closed") this.#finish(null);
	}
	async #connect(reason) {
		this.#setState({ name: "connecting" });
		const { getToken } = this.#options;
		let token;
		try {
			token = getToken === void 0 ? this.#options.token : await getToken(reason) ?? null;
		} catch (error) {
			if (!this.#isClosed) this.#retry(new ConnectionLost(BROKEN, "no token", { cause: error }), 0);
			return;
		}
		if (this.#isClosed) return;
		if (token === null) {
			this.#finish(new ConnectionClosed(INVALID_TOKEN, "there is no token any more"));
			return;
		}
		const inFrame = (this.#options.tokenIn ?? defaultTokenIn()) === "frame";
		const protocols = ["nuropb.v1"];
		if (token !== void 0 && !inFrame) protocols.push(`base64url.bearer.nuropb.${base64url(token)}`);
		let socket;
		try {
			socket = new (this.#options.WebSocket ?? WebSocket)(this.url, protocols);
		} catch (error) {
			this.#finish(new ConnectionClosed(BROKEN, "the page's policy forbids the connection", { cause: error }));
			return;
		}
		const link = {
			socket,
			openedAt: null,
			heardAt: performance.now(),
			pingedAt: null,
			timers: {},
			lastError: null,
			stayAway: 0,
			notBefore: 0
		};
		this.#link = link;
		link.timers.connect = after(this.#options.connectTimeout ?? 15e3, () => this.#drop(link, "no hello in time"));
		socket.onopen = () => {
			if (this.#link !== link) return;
			this.#calls.connected((text) => socket.send(text));
			this.#setState({ name: "authorising" });
			if (token !== void 0 && inFrame) this.#calls.ask("authorize", { token }).catch(() => {});
		};
		socket.onmessage = ({ data }) => this.#link === link && this.#receive(link, data);
		socket.onerror = () => {};
		socket.onclose = ({ code, reason }) => {
			if (this.#link === link) this.#closed(link, code, reason);
		};
	}
	#drop(link, reason) {
		if (this.#link !== link) return;
		this.#closed(link, BROKEN, reason);
		link.socket.close(1e3);
	}
	#closed(link, code, reason) {
		this.#leave(link);
		const options = link.lastError === null ? void 0 : { cause: link.lastError };
		const lost = new ConnectionLost(code, reason, options);
		this.#subscriptions.disconnected();
		this.#calls.lost(lost);
		if (link.openedAt !== null && performance.now() - link.openedAt >= (this.#options.stableAfter ?? 1e4)) this.#attempt = 0;
		if (code === INVALID_TOKEN && this.#options.getToken !== void 0 && !this.#renewed && this.#comesBack) {
			this.#renewed = true;
			this.#connect("rejected");
		} else if (isFinal(code)) this.#finish(new ConnectionClosed(code, reason, options));
		else this.#retry(lost, Math.max(link.stayAway, link.notBefore - performance.now(), 0));
	}
	#retry(error, asked) {
		if (!this.#comesBack) {
			const { closeCode, reason, cause } = error;
			this.#finish(new ConnectionClosed(closeCode, reason, cause === void 0 ? void 0 : { cause }));
			return;
		}
		const delay = asked + jittered(this.#backoff, this.#attempt++);
		this.#isAsked = asked > 0;
		this.#reconnection = after(delay, () => void this.#connect("connect"));
		this.#setState({
			name: "reconnecting",
			delay,
			error
		});
	}
	#online() {
		const link = this.#link;
		if (this.#state.name === "reconnecting" && !this.#isAsked) {
			clearTimeout(this.#reconnection);
			this.#connect("connect");
		} else if (this.#state.name === "open" && link !== null && link.pingedAt === null) {
			this.#ping(link);
			this.#watch(link);
		}
	}
	#finish(error) {
		const link = this.#link;
		if (link !== null) {
			this.#leave(link);
			link.socket.close(1e3);
		}
		clearTimeout(this.#reconnection);
		this.#stopListening();
		this.#subscriptions.close(error);
		this.#calls.close(error ?? closedByApplication());
		this.#setState({
			name: "closed",
			error
		});
	}
	#leave(link) {
		this.#link = null;
		for (const timer of Object.values(link.timers)) clearTimeout(timer);
	}
	get #isClosed() {
		return this.#state.name === "closed";
	}
	get #comesBack() {
		return this.#options.reconnect !== false;
	}
	#receive(link, data) {
		link.heardAt = performance.now();
		if (link.pingedAt !== null) {
			link.pingedAt = null;
			this.#watch(link);
		}
		const frame = parse(data);
		if (frame === null) {
			this.#tell("warning", new UnexpectedFrame("the gateway sent a message that is not a JSON object"));
			return;
		}
		const payload = isObject(frame.payload) ? frame.payload : {};
		switch (frame.type) {
			case "response": {
				const unexpected = this.#calls.answer(payload);
				if (unexpected !== null) this.#tell("warning", unexpected);
				return;
			}
			case "event":
				if (typeof payload.topic === "string") this.#onEvent(link, payload.topic, payload);
				else this.#tell("warning", new UnexpectedFrame("the gateway sent an event without a topic"));
				return;
			case "ping":
				link.socket.send(JSON.stringify({
					type: "pong",
					payload: frame.payload
				}));
				return;
			case "pong": return;
			case "error":
				this.#onError(link, callFailed(frame));
				return;
			default: this.#tell("warning", new UnexpectedFrame("the gateway sent a frame of unknown type"));
		}
	}
	#onEvent(link, topic, { event, trace_id }) {
		if (topic === "hello") this.#onHello(link, event);
		else if (topic === "goodbye") {
			const payload = isObject(event) ? event : {};
			const retryAfter = link.stayAway = obeyed(milliseconds(payload.retry_after_ms));
			this.#calls.hold();
			clearTimeout(link.timers.goodbye);
			link.timers.goodbye = after(GOODBYE_TIMEOUT, () => this.#drop(link, "the gateway is stopping"));
			this.#tell("goodbye", {
				reason: String(payload.reason ?? ""),
				retryAfter
			});
		} else if (!this.#subscriptions.notice(topic, event)) {
			const received = {
				topic,
				event,
				traceId: typeof trace_id === "string" ? trace_id : null
			};
			this.#emitter.emit("event", received);
			this.#subscriptions.dispatch(received);
		}
	}
	#onHello(link, event) {
		const hello = this.#hello = sound(event);
		const isFirst = link.openedAt === null;
		clearTimeout(link.timers.connect);
		link.openedAt ??= performance.now();
		this.#renewed = false;
		this.#calls.limits = {
			maxMessageSize: hello.limits.max_message_size,
			maxInFlight: hello.limits.max_in_flight,
			requestTimeout: hello.limits.request_timeout * 1e3
		};
		this.#planRefresh(link);
		this.#watch(link);
		if (!isFirst) {
			this.#calls.release();
			return;
		}
		this.#setState({
			name: "open",
			hello
		});
		if (this.#link !== link) return;
		this.#subscriptions.connected();
		this.#calls.release();
	}
	#onError(link, error) {
		link.lastError = error;
		link.notBefore = performance.now() + obeyed(error.retryAfter);
		if (link.openedAt !== null) this.#tell("warning", error);
	}
	#planRefresh(link) {
		clearTimeout(link.timers.refresh);
		const { expires_at: expiresAt } = this.#hello;
		if (expiresAt === null || this.#options.getToken === void 0) return;
		const left = expiresAt * 1e3 - Date.now();
		if (left <= 0) return;
		const margin = Math.min(this.#options.refreshMargin ?? 6e4, left / 4) * (.5 + this.#backoff.random() / 2);
		link.timers.refresh = after(left - margin, () => void this.#refresh(link, expiresAt, 0));
	}
	async #refresh(link, expiresAt, attempt) {
		let problem;
		try {
			const token = await this.#options.getToken("refresh");
			if (this.#link !== link) return;
			if (token !== null) {
				await this.authorize(token);
				return;
			}
			problem = new Unauthenticated({
				code: "unauthenticated",
				description: "there is no token any more"
			});
		} catch (error) {
			problem = error;
		}
		if (this.#link !== link) return;
		this.#tell("warning", new TokenRefreshFailed(problem));
		const wait = jittered(this.#backoff, attempt);
		if (problem instanceof PermissionDenied || Date.now() + wait >= expiresAt * 1e3) return;
		link.timers.refresh = after(wait, () => void this.#refresh(link, expiresAt, attempt + 1));
	}
	#watch(link) {
		const interval = this.#options.pingInterval ?? Math.min(this.#hello.limits.ping_interval * 1e3, MAX_PING_INTERVAL);
		const timeout = this.#options.pingTimeout ?? 1e4;
		clearTimeout(link.timers.silence);
		const look = () => {
			const now = performance.now();
			if (link.pingedAt !== null && now - link.pingedAt >= timeout) {
				this.#drop(link, "the gateway does not answer");
				return;
			}
			if (link.pingedAt === null && now - link.heardAt >= interval) this.#ping(link);
			const next = link.pingedAt === null ? link.heardAt + interval : link.pingedAt + timeout;
			link.timers.silence = after(next - performance.now(), look);
		};
		look();
	}
	#ping(link) {
		link.pingedAt = performance.now();
		link.socket.send("{\"type\":\"ping\"}");
	}
	#call(kind, payload, options) {
		if (this.#state.name === "closed") throw this.#state.error ?? closedByApplication();
		return this.#calls.call(kind, payload, options);
	}
	#setState(state) {
		this.#state = state;
		this.#emitter.emit("state", state);
	}
	#tell(name, value) {
		if (!this.#emitter.emit(name, value) && name === "warning") console.warn("nuropb-gateway-client:", value);
	}
};
function closedByApplication() {
	return new ConnectionClosed(1e3, "by the application");
}
function checked(params) {
	if (!isObject(params)) throw new TypeError("params must be an object: its members are the method's arguments");
	return params;
}
function defaultTokenIn() {
	return typeof location === "undefined" ? "frame" : "subprotocol";
}
function base64url(token) {
	const bytes = new TextEncoder().encode(token);
	return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
function parse(data) {
	if (typeof data !== "string") return null;
	try {
		const frame = JSON.parse(data);
		return isObject(frame) ? frame : null;
	} catch {
		return null;
	}
}
function sound(event) {
	const given = isObject(event) ? event : {};
	const limits = isObject(given.limits) ? given.limits : {};
	const positive = (value, usual) => typeof value === "number" && value > 0 ? value : usual;
	const text = (value) => typeof value === "string" ? value : "";
	return {
		session_id: text(given.session_id),
		user_id: text(given.user_id),
		username: text(given.username),
		protocol: text(given.protocol),
		instance_id: text(given.instance_id),
		expires_at: typeof given.expires_at === "number" ? given.expires_at : null,
		limits: {
			max_message_size: positive(limits.max_message_size, LIMITS.maxMessageSize),
			max_in_flight: positive(limits.max_in_flight, LIMITS.maxInFlight),
			request_timeout: positive(limits.request_timeout, LIMITS.requestTimeout / 1e3),
			ping_interval: positive(limits.ping_interval, MAX_PING_INTERVAL / 1e3)
		}
	};
}
// src/version.ts
var VERSION = "0.1.0";
// src/shared.ts
var WORKER_NAME = `nuropb-gateway-client ${VERSION}`;
var START_TIMEOUT = 5e3;
function sharedSockets(workerUrl, opening) {
	let usable = typeof SharedWorker === "function";
	const giveUp = (problem) => {
		usable = false;
		console.warn("nuropb-gateway-client: no SharedWorker; this tab uses a connection of its own:", problem);
	};
	const open = function(url, protocols) {
		if (usable) try {
			return new PortSocket(new SharedWorker(trusted(workerUrl), {
				type: "module",
				name: `${WORKER_NAME} ${url}`
			}), {
				...opening,
				url
			}, giveUp);
		} catch (error) {
			giveUp(error);
		}
		return new WebSocket(url, protocols);
	};
	return open;
}
var trusted = (() => {
	let policy;
	return (url) => {
		const { trustedTypes } = globalThis;
		if (trustedTypes === void 0) return url;
		policy ??= trustedTypes.createPolicy("nuropb-gateway-client", { createScriptURL: (text) => text });
		return policy.createScriptURL(url.href);
	};
})();
var PortSocket = class {
	onopen = null;
	onmessage = null;
	onerror = null;
	onclose = null;
	#port;
	#started;
	#release = () => {};
	#isClosed = false;
	constructor(worker, opening, giveUp) {
		this.#port = worker.port;
		const fail = (problem) => {
			giveUp(problem);
			this.#end(1006, "no SharedWorker");
		};
		this.#started = setTimeout(() => fail("the worker did not start"), START_TIMEOUT);
		worker.onerror = (event) => fail(event);
		this.#port.onmessage = ({ data }) => this.#receive(data);
		this.#hold((lock) => this.#post({ open: {
			...opening,
			lock
		} }));
	}
	send(text) {
		if (!this.#isClosed) this.#port.postMessage(text);
	}
	close() {
		if (this.#isClosed) return;
		this.#post({ close: true });
		this.#end(1e3, "");
	}
	#receive(data) {
		if (typeof data === "string") this.onmessage?.({ data });
		else if ("opened" in data) {
			clearTimeout(this.#started);
			this.onopen?.({});
		} else this.#end(data.closed.code, data.closed.reason);
	}
	#post(message) {
		this.#port.postMessage(message);
	}
	#hold(then) {
		if (typeof navigator.locks === "undefined") {
			then(null);
			return;
		}
		const name = `${WORKER_NAME} ${crypto.randomUUID()}`;
		const held = new Promise((resolve) => this.#release = resolve);
		navigator.locks.request(name, () => {
			if (!this.#isClosed) then(name);
			return held;
		}).catch(() => then(null));
	}
	#end(code, reason) {
		if (this.#isClosed) return;
		this.#isClosed = true;
		clearTimeout(this.#started);
		this.#release();
		this.#port.close();
		this.onclose?.({
			code,
			reason
		});
	}
};
// src/worker.ts
var TAB_PING_INTERVAL = 25e3;
var TAB_PING_TIMEOUT = 1e4;
var hubs = new Set();
function serve(scope) {
	scope.onconnect = ({ ports }) => new Tab(ports[0]);
}
var Hub = class {
	client;
	tabs = new Set();
	url;
	opened;
	#authorizing = Promise.resolve();
	constructor({ url, tokenIn, pingInterval, pingTimeout }, token) {
		this.url = url;
		const client = this.client = new Client(url, {
			token,
			tokenIn,
			pingInterval,
			pingTimeout,
			reconnect: false
		});
		this.opened = new Promise((resolve) => {
			client.on("state", (state) => {
				if (state.name === "open") resolve(true);
				if (state.name === "closed") {
					hubs.delete(this);
					resolve(false);
					if (state.error !== null) for (const tab of [...this.tabs]) tab.hangUp(state.error);
				}
			});
		});
		client.on("event", ({ topic, event, traceId }) => this.#broadcast(topic, event, traceId));
		for (const topic of [
			"gap",
			"dropped",
			"unsubscribed"
		]) client.on(topic, (event) => this.#broadcast(topic, event));
		client.on("goodbye", ({ reason, retryAfter }) => {
			this.#broadcast("goodbye", {
				reason,
				retry_after_ms: retryAfter
			});
		});
		client.on("warning", ({ code, message }) => {
			for (const tab of this.tabs) tab.send({
				type: "error",
				code,
				description: message
			});
		});
		hubs.add(this);
	}
	authorize(token) {
		const answer = this.#authorizing.then(() => this.client.authorize(token));
		this.#authorizing = answer.catch(() => {});
		return answer;
	}
	leave(tab) {
		this.tabs.delete(tab);
		if (this.tabs.size === 0) this.client.close();
	}
	#broadcast(topic, event, traceId = null) {
		const trace = traceId === null ? {} : { trace_id: traceId };
		for (const tab of this.tabs) tab.send({
			type: "event",
			payload: {
				topic,
				event,
				...trace
			}
		});
	}
};
var Tab = class {
	#port;
	#opening = null;
	#hub = null;
	#isGone = false;
	#calls = new Map();
	#topics = new Map();
	#heardAt = performance.now();
	#heartbeat;
	constructor(port) {
		this.#port = port;
		port.onmessage = ({ data }) => this.#receive(data);
	}
	send(frame) {
		if (!this.#isGone) this.#port.postMessage(JSON.stringify(frame));
	}
	hangUp(error) {
		if (error.cause instanceof CallFailed) this.send({
			type: "error",
			...encoded(error.cause)
		});
		this.#end(error.closeCode, error.reason);
	}
	#end(code, reason) {
		if (this.#isGone) return;
		const closed = { closed: {
			code,
			reason
		} };
		this.#port.postMessage(closed);
		this.#leave();
	}
	#leave() {
		if (this.#isGone) return;
		this.#isGone = true;
		clearInterval(this.#heartbeat);
		this.#port.close();
		for (const call of this.#calls.values()) call.abort();
		for (const subscription of this.#topics.values()) subscription.unsubscribe();
		this.#hub?.leave(this);
	}
	#receive(data) {
		this.#heardAt = performance.now();
		if (typeof data === "string") {
			const { type, payload } = JSON.parse(data);
			this.#onFrame(type, payload ?? {});
		} else if ("open" in data) this.#open(data.open);
		else this.#leave();
	}
	#open(opening) {
		this.#opening = opening;
		if (opening.lock !== null) navigator.locks.request(opening.lock, () => this.#leave());
		const interval = opening.pingInterval ?? TAB_PING_INTERVAL;
		const patience = interval + (opening.pingTimeout ?? TAB_PING_TIMEOUT);
		this.#heartbeat = setInterval(() => {
			if (performance.now() - this.#heardAt > patience) this.#end(4012, "no pong");
			else this.send({ type: "ping" });
		}, interval);
		this.#port.postMessage({ opened: true });
	}
	async #onFrame(type, payload) {
		const hub = this.#hub;
		if (type === "authorize") await (hub === null ? this.#join(payload) : this.#answer(payload, () => this.#refresh(hub, payload)));
		else if (type === "ping") this.send({
			type: "pong",
			payload
		});
		else if (type === "cancel") this.#calls.get(String(payload.id))?.abort();
		else if (hub !== null && type !== "pong") await this.#answer(payload, () => this.#do(hub.client, type, payload));
	}
	async #join(payload) {
		const opening = this.#opening;
		const token = String(payload.token);
		for (const hub of [...hubs]) {
			if (hub.url !== opening.url || !await hub.opened) continue;
			try {
				const expiresAt = await hub.authorize(token);
				this.#enter(hub, payload.id, expiresAt);
				return;
			} catch {}
		}
		if (this.#isGone) return;
		const hub = new Hub(opening, token);
		hub.tabs.add(this);
		this.#hub = hub;
		if (await hub.opened) this.#enter(hub, payload.id, hub.client.hello.expires_at);
	}
	#enter(hub, id, expiresAt) {
		if (this.#isGone) {
			hub.leave(this);
			return;
		}
		this.#hub = hub;
		hub.tabs.add(this);
		this.send({
			type: "event",
			payload: {
				topic: "hello",
				event: {
					...hub.client.hello,
					expires_at: expiresAt
				}
			}
		});
		this.send({
			type: "response",
			payload: {
				id,
				result: { expires_at: expiresAt },
				error: null
			}
		});
	}
	async #refresh(hub, payload) {
		return { expires_at: await hub.authorize(String(payload.token)) };
	}
	async #answer({ id, trace_id }, run) {
		try {
			const result = await run() ?? null;
			this.send({
				type: "response",
				payload: {
					id,
					trace_id,
					result,
					error: null
				}
			});
		} catch (error) {
			if (error instanceof ConnectionLost || error instanceof ConnectionClosed) return;
			const failure = error instanceof CallFailed ? encoded(error) : {
				code: "cancelled",
				description: String(error)
			};
			const trace = error instanceof CallFailed ? error.traceId ?? trace_id : trace_id;
			this.send({
				type: "response",
				payload: {
					id,
					trace_id: trace,
					result: null,
					error: failure
				}
			});
		}
	}
	async #do(client, type, payload) {
		const topics = Array.isArray(payload.topics) ? payload.topics.map(String) : [];
		if (type === "subscribe") return this.#subscribe(client, topics);
		if (type === "unsubscribe") return this.#unsubscribe(topics);
		const id = String(payload.id);
		const controller = new AbortController();
		this.#calls.set(id, controller);
		const service = payload.service;
		const method = payload.method;
		const params = isObject(payload.params) ? payload.params : {};
		const options = {
			signal: controller.signal,
			timeout: typeof payload.timeout === "number" ? payload.timeout * 1e3 : void 0,
			traceId: typeof payload.trace_id === "string" ? payload.trace_id : void 0
		};
		try {
			if (type === "request") return await client.request(service, method, params, options);
			if (type === "command") return await client.command(service, method, params, options);
			return await client.describe(service, options);
		} finally {
			this.#calls.delete(id);
		}
	}
	async #subscribe(client, topics) {
		const fresh = topics.filter((topic) => !this.#topics.has(topic));
		for (const topic of fresh) {
			const subscription = client.subscribe(topic, () => {});
			this.#topics.set(topic, subscription);
			subscription.on("ended", () => {
				if (this.#topics.get(topic) === subscription) this.#topics.delete(topic);
			});
		}
		try {
			await Promise.all(topics.map((topic) => this.#topics.get(topic)?.ready));
		} catch (error) {
			this.#unsubscribe(fresh);
			throw error;
		}
		return { topics: [...this.#topics.keys()] };
	}
	#unsubscribe(topics) {
		for (const topic of topics) this.#topics.get(topic)?.unsubscribe();
		return { topics: [...this.#topics.keys()] };
	}
};
function encoded(error) {
	return {
		code: error.code,
		description: error.message,
		error: error.error,
		retryable: error.retryable,
		retry_after_ms: error.retryAfter
	};
}
// src/connect.ts
function connect(url, options = {}) {
	const { shared, workerUrl, ...rest } = options;
	const address = absolute(url);
	if (options.getToken !== void 0 && options.token !== void 0) throw new TypeError("getToken and token cannot be combined");
	if (shared) {
		if (options.getToken === void 0) throw new TypeError("shared needs getToken: the token identifies the user of this tab");
		const { tokenIn, pingInterval, pingTimeout } = options;
		const sockets = sharedSockets(worker(workerUrl), {
			tokenIn,
			pingInterval,
			pingTimeout
		});
		return new Client(address, {
			...rest,
			tokenIn: "frame",
			WebSocket: sockets
		});
	}
	if (options.WebSocket === void 0 && typeof WebSocket === "undefined") throw new TypeError("there is no global WebSocket: use Node 22, start Node 20 with --experimental-websocket, or pass the WebSocket of a package such as ws");
	return new Client(address, rest);
}
function absolute(url) {
	const address = new URL(url, typeof location === "undefined" ? void 0 : location.href);
	address.protocol = address.protocol.replace(/^http/, "ws");
	if (!/^wss?:$/.test(address.protocol)) throw new TypeError("the URL must begin with ws://, wss://, http:// or https://");
	address.hash = "";
	return address.href;
}
function worker(url) {
	if (url !== void 0) return new URL(url, location.href);
	const own = new URL(import.meta.url);
	if (own.pathname.endsWith("/client.js")) return own;
	throw new TypeError("shared needs workerUrl: this module is part of a bundle, so pass the URL of client.js");
}
var scope = globalThis;
if (scope.SharedWorkerGlobalScope !== void 0 && globalThis instanceof scope.SharedWorkerGlobalScope && scope.name?.startsWith(WORKER_NAME)) serve(scope);
export { BadRequest, CallFailed, CallTimeout, Cancelled, ConnectionClosed, ConnectionLost, Deprecated, DuplicateId, GatewayError, InternalError, InvalidParams, MeshUnavailable, MethodNotFound, PayloadTooLarge, PermissionDenied, ServiceError, ServiceUnavailable, TokenRefreshFailed, TooManyRequests, Unauthenticated, UnexpectedFrame, Unsubscribed, VERSION, connect, matches };
