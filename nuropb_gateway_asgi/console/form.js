/** Parameters of a method as fields of a form, and the text of these fields as parameters. */

/**
 * @typedef {"text" | "integer" | "number" | "boolean" | "json" | "any"} Kind
 * @typedef {{ name: string, type: string, kind: Kind, required: boolean, hint: string }} Field
 * @typedef {{ params: Record<string, unknown>, problems: Record<string, string> }} Reading
 */

/** Kinds of fields by the Python type that a service declares. @type {Record<string, Kind>} */
const KINDS = {
  str: "text",
  int: "integer",
  float: "number",
  bool: "boolean",
  list: "json",
  tuple: "json",
  set: "json",
  dict: "json",
};

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
        kind: KINDS[type] ?? "any",
        required: required.includes(name),
        hint: fallback === "" ? "" : `${fallback} if empty`,
      };
    });
  return [...fields.filter((each) => each.required), ...fields.filter((each) => !each.required)];
}

/** Whether the method accepts arguments that have no field. @param {{ properties?: Record<string, unknown> }} parameters */
export function isOpen({ properties = {} }) {
  return "kwargs" in properties;
}

/**
 * Read the fields as parameters. Empty fields are omitted.
 * @param {Field[]} fields
 * @param {Record<string, string>} texts
 * @returns {Reading}
 */
export function readFields(fields, texts) {
  /** @type {Reading} */
  const reading = { params: {}, problems: {} };
  for (const { name, kind } of fields) {
    const text = texts[name] ?? "";
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
  const texts = {};
  for (const { name, kind } of fields) {
    if (!(name in params)) continue;
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
