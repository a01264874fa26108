/** Preact with htm, and components used by several modules. */
import { pieces } from "./text.js";
import htm from "./vendor/htm.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { h } from "./vendor/preact.js";

export const html = htm.bind(h);
export { render } from "./vendor/preact.js";
export { useCallback, useEffect, useId, useLayoutEffect, useMemo, useReducer, useRef, useState } from "./vendor/hooks.js";

/** Longer texts are cut: a browser is slow with a megabyte of text. */
const SHOWN = 200_000;

/** JSON with colours, and a button that copies the whole text. @param {{ text: string, label: string, copy?: boolean }} props */
export function Json({ text, label, copy = false }) {
  const shown = text.length > SHOWN ? text.slice(0, SHOWN) : text;
  return html`
    <div class="json">
      ${copy && html`<${Copy} text=${text} what=${label} />`}
      <pre tabindex="0" role="region" aria-label=${label}>${pieces(shown).map(({ text: piece, kind }) =>
        kind === "" ? piece : html`<span class="j-${kind}">${piece}</span>`)}${shown.length < text.length &&
        `\n… (${text.length - shown.length} more characters: copy to see them)`}</pre>
    </div>`;
}

/** @param {{ text: string, what: string, name?: string, disabled?: boolean }} props */
export function Copy({ text, what, name = "Copy", disabled = false }) {
  const [done, setDone] = useState("");
  const timer = useRef(/** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined));
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone("Copied");
    } catch {
      setDone("Copying not allowed");
    }
    timer.current = setTimeout(() => setDone(""), 1500);
  };
  return html`<button type="button" class="small copy" onClick=${copy} disabled=${disabled} aria-label="Copy: ${what}">
    ${done || name}<span class="unseen" role="status">${done}</span></button>`;
}

/** Offer a text as a download. @param {string} text @param {string} name */
export function saveFile(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
