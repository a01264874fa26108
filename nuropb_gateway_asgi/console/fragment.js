/**
 * The token in the fragment (behind the #) of the address that `make run` prints. Browsers never send the fragment to a
 * server, and this module removes it from the address bar before anything else happens. The page uses the token only if
 * the gateway made it itself, for this run: otherwise a link could sign a person in as somebody else.
 */
const { development } = document.documentElement.dataset;

/** @type {string | null} */
let found = null;
/** @type {((token: string) => void) | null} */
let listener = null;

function take() {
  if (location.hash === "") return;
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  history.replaceState(history.state, "", location.pathname + location.search);
  if (!token || development !== "yes") return;
  found = token;
  listener?.(token);
}

take();
addEventListener("hashchange", take);

/**
 * Call `then` with the token of the fragment, now and after every change.
 * @param {(token: string) => void} then
 */
export function onFragmentToken(then) {
  listener = then;
  if (found !== null) then(found);
}
