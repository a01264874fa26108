/** Parameters of a method as fields of a form, and the text of these fields as parameters. */

/**
 * @typedef {"text" | "integer" | "number" | "boolean" | "json" | "any"} Kind
 * @typedef {{ name: string, type: string, kind: Kind, required: boolean, hint: string }} Field
 * @typedef {{ params: Record<string, unknown>, problems: Record<string, string> }} Reading
 */

/** Kinds of fields by the Python type that a service declares. @type {Map<string, Kind>} */
const KINDS = new Map([
  ["str", "text"],
  ["int", "integer"],
  ["float", "number"],
  ["bool", "boolean"],
  ["list", "json"],
  ["tuple", "json"],
  ["set", "json"],
  ["dict", "json"],
]);

/**
 * The own member of an object. Services choose names, and every object has a `constructor` and a `toString`.
 * @template T
 * @param {Record<string, T> | undefined} object
 * @param {string} name
 * @returns {T | undefined}
 */
export function own(object, name) {
  return object !== undefined && Object.hasOwn(object, name) ? object[name] : undefined;
}

/**
 * A copy of a map from names to values, with one more entry. It has no prototype, so that each name, even `__proto__`, is
 * a name like any other.
 * @template T
 * @param {Record<string, T>} map
 * @param {string} name
 * @param {T} value
 * @returns {Record<string, T>}
 */
export function withEntry(map, name, value) {
  return Object.assign(Object.create(null), map, { [name]: value });
}

/**
 * The fields of a method's form, required fields first.
 * @param {{ properties?: Record<string, { type?: string, default?: unknown }>, required?: string[] }} parameters
 * @returns {Field[]}
 */
export function fieldsOf({ properties = {}, required = [] }) {
  const fields = Object.entries(properties)
    // Without a type, these collect further arguments.
    .filter(([name, { type = "any" }]) => !((name === "args" || name === "kwargs") && /^any$/i.test(type)))
    .map(([name, spec]) => {
      const type = spec.type ?? "any";
      const fallback = "default" in spec && spec.default !== undefined ? JSON.stringify(spec.default) : "";
      return {
        name,
        type,
        kind: KINDS.get(type) ?? "any",
        required: required.includes(name),
        hint: fallback === "" ? "" : `${fallback} if empty`,
      };
    });
  return [...fields.filter((each) => each.required), ...fields.filter((each) => !each.required)];
}

/** Whether the method accepts arguments that have no field. @param {{ properties?: Record<string, unknown> }} parameters */
export function isOpen({ properties = {} }) {
  return Object.hasOwn(properties, "kwargs");
}

/**
 * Read the fields as parameters. Empty fields are omitted, unless they are required.
 * @param {Field[]} fields
 * @param {Record<string, string>} texts
 * @returns {Reading}
 */
export function readFields(fields, texts) {
  /** @type {Reading} */
  const reading = { params: Object.create(null), problems: Object.create(null) };
  for (const { name, kind, required } of fields) {
    const text = texts[name] ?? "";
    if (text === "" && required) {
      reading.problems[name] = kind === "text" ? "Required. (An empty text can be sent as JSON.)" : "Required.";
    }
    if (text === "") continue;
    try {
      reading.params[name] = readValue(kind, text);
    } catch (error) {
      reading.problems[name] = /** @type {Error} */ (error).message;
    }
  }
  return reading;
}

/** @param {Kind} kind @param {string} text */
export function readValue(kind, text) {
  switch (kind) {
    case "text":
      return text;
    case "boolean":
      return text === "true";
    case "integer":
    case "number": {
      const trimmed = text.trim();
      const isInteger = /^-?\d+$/.test(trimmed);
      if (kind === "integer" && !isInteger) throw new Error("Enter a whole number, such as 42.");
      if (!isInteger && !/^-?\d+(\.\d+)?([eE][+-]?\d+)?$/.test(trimmed)) {
        throw new Error("Enter a number, such as 1.5.");
      }
      const number = Number(trimmed);
      if (!Number.isFinite(number) || (isInteger && !Number.isSafeInteger(number))) {
        throw new Error("JavaScript cannot represent this number exactly.");
      }
      return number;
    }
    case "json":
      return parsed(text);
    default:
      try {
        return parsed(text);
      } catch {
        return text;
      }
  }
}

/** Tell a person how the text of an untyped field will be sent. @param {string} text */
export function understood(text) {
  if (text === "") return "";
  const value = readValue("any", text);
  if (typeof value === "string") return value === text ? "sent as text" : "sent as the text in quotes";
  if (value === null) return "sent as null";
  return Array.isArray(value) ? "sent as a list" : `sent as ${typeof value === "object" ? "an object" : `a ${typeof value}`}`;
}

/**
 * Read the parameters from one JSON text.
 * @param {string} text
 * @returns {Reading}
 */
export function readObject(text) {
  try {
    const params = parsed(text.trim() === "" ? "{}" : text);
    if (typeof params === "object" && params !== null && !Array.isArray(params)) {
      return { params: /** @type {Record<string, unknown>} */ (params), problems: {} };
    }
    return { params: {}, problems: { "": 'Enter a JSON object, such as {"a": 2}.' } };
  } catch (error) {
    return { params: {}, problems: { "": /** @type {Error} */ (error).message } };
  }
}

/** The text of each field for these parameters. @param {Field[]} fields @param {Record<string, unknown>} params */
export function textsOf(fields, params) {
  /** @type {Record<string, string>} */
  const texts = Object.create(null);
  for (const { name, kind } of fields) {
    if (!Object.hasOwn(params, name)) continue;
    const value = params[name];
    texts[name] = kind === "text" && typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  }
  return texts;
}

/** @param {string} text @returns {unknown} */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${/** @type {Error} */ (error).message}.`, { cause: error });
  }
}
