/** What a method takes, as fields of a form, and what was typed into them, as parameters. */

/**
 * @typedef {"text" | "integer" | "number" | "boolean" | "json" | "any"} Kind
 * @typedef {{ name: string, type: string, kind: Kind, required: boolean, hint: string }} Field
 * @typedef {{ params: Record<string, unknown>, problems: Record<string, string> }} Reading
 */

/** The types that services name, in the words of Python. @type {Record<string, Kind>} */
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
 * The fields of a method's form, those that have to be filled in first.
 * @param {{ properties?: Record<string, { type?: string, default?: unknown }>, required?: string[] }} parameters
 * @returns {Field[]}
 */
export function fieldsOf({ properties = {}, required = [] }) {
  const fields = Object.entries(properties)
    // Of no type of their own, these are for whatever else there is.
    .filter(([name, { type = "any" }]) => !((name === "args" || name === "kwargs") && /^any$/i.test(type)))
    .map(([name, spec]) => {
      const type = spec.type ?? "any";
      const fallback = "default" in spec && spec.default !== undefined ? JSON.stringify(spec.default) : "";
      return {
        name,
        type,
        kind: KINDS[type] ?? "any",
        required: required.includes(name),
        hint: fallback === "" ? "" : `${fallback} if left empty`,
      };
    });
  return [...fields.filter((each) => each.required), ...fields.filter((each) => !each.required)];
}

/** Whether some argument may be given that has no field. @param {{ properties?: Record<string, unknown> }} parameters */
export function isOpen({ properties = {} }) {
  return "kwargs" in properties;
}

/**
 * What was typed, as parameters. A field that was left empty is left out.
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
      if (kind === "integer" && !isInteger) throw new Error("A whole number is wanted, such as 42.");
      if (!isInteger && !/^-?\d+(\.\d+)?([eE][+-]?\d+)?$/.test(trimmed)) {
        throw new Error("A number is wanted, such as 1.5.");
      }
      const number = Number(trimmed);
      if (!Number.isFinite(number) || (isInteger && !Number.isSafeInteger(number))) {
        throw new Error("JavaScript cannot hold this number without changing it.");
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

/** How a field that takes anything was understood, for people. @param {string} text */
export function understood(text) {
  if (text === "") return "";
  const value = readValue("any", text);
  if (typeof value === "string") return value === text ? "sent as text" : "sent as the text in quotes";
  if (value === null) return "sent as null";
  return Array.isArray(value) ? "sent as a list" : `sent as ${typeof value === "object" ? "an object" : `a ${typeof value}`}`;
}

/**
 * Parameters as one text of JSON.
 * @param {string} text
 * @returns {Reading}
 */
export function readObject(text) {
  try {
    const params = parsed(text.trim() === "" ? "{}" : text);
    if (typeof params === "object" && params !== null && !Array.isArray(params)) {
      return { params: /** @type {Record<string, unknown>} */ (params), problems: {} };
    }
    return { params: {}, problems: { "": 'An object is wanted, such as {"a": 2}.' } };
  } catch (error) {
    return { params: {}, problems: { "": /** @type {Error} */ (error).message } };
  }
}

/** What goes into the fields for these parameters. @param {Field[]} fields @param {Record<string, unknown>} params */
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
