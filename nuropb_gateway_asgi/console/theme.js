/** Dark or light: as the system says, or as the user has chosen. Sets data-theme of the page, which the styles follow. */

const KEY = "nuropb-gateway-console-colours";
const system = matchMedia("(prefers-color-scheme: dark)");
/** @type {Set<() => void>} */
const listeners = new Set();

/** @typedef {"system" | "light" | "dark"} Theme */
/** Themes, and their names for people. @type {readonly (readonly [Theme, string])[]} */
export const THEMES = [
  ["system", "As the system"],
  ["light", "Light"],
  ["dark", "Dark"],
];

/** @returns {Theme} */
export function chosenTheme() {
  try {
    const kept = localStorage.getItem(KEY);
    return kept === "light" || kept === "dark" ? kept : "system";
  } catch {
    return "system";
  }
}

/** @param {Theme} theme */
export function chooseTheme(theme) {
  try {
    if (theme === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // The choice holds for this page.
  }
  apply(theme);
}

/** Call `listener` after changes. Returns a function that removes it. @param {() => void} listener */
export function onTheme(listener) {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** @param {Theme} theme */
function apply(theme) {
  const isDark = theme === "system" ? system.matches : theme === "dark";
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  for (const listener of [...listeners]) listener();
}

apply(chosenTheme());
system.addEventListener("change", () => apply(chosenTheme()));
