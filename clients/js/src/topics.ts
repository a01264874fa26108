/**
 * Whether a topic exchange would route `topic` to a queue that is bound with `pattern`: `*` stands for one word, `#`
 * for any number of them, also none.
 */
export function matches(pattern: string, topic: string): boolean {
  const expected = words(pattern);
  const given = words(topic);
  let at = 0;
  let position = 0;
  // After a mismatch the last # takes one word more; the earlier ones need not, so the cost stays a product.
  let afterHash = -1;
  let resume = 0;
  while (position < given.length) {
    const word = expected[at];
    if (word === "#") {
      afterHash = ++at;
      resume = position;
    } else if (word !== undefined && (word === "*" || word === given[position])) {
      at++;
      position++;
    } else if (afterHash >= 0) {
      at = afterHash;
      position = ++resume;
    } else {
      return false;
    }
  }
  return expected.slice(at).every((word) => word === "#");
}

/** The empty topic has no word at all. */
function words(text: string): string[] {
  return text === "" ? [] : text.split(".");
}
