/**
 * The token that `make run` prints as a part of the console's address, behind the #. It is taken out of the address bar
 * before anything else happens; a browser never sends that part to a server. Only a gateway that has made the token
 * itself, for this run, has the page take it: otherwise a link could sign somebody in as somebody else.
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
 * Call `then` with the token that is there, and with every one that comes.
 * @param {(token: string) => void} then
 */
export function onFragmentToken(then) {
  listener = then;
  if (found !== null) then(found);
}
