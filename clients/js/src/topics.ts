/**
 * Return whether a topic exchange would route `topic` to a queue that is bound with `pattern`. In a pattern `*` matches
 * one word, and `#` any number of words, including none.
 */
export function matches(pattern: string, topic: string): boolean {
  const expected = words(pattern);
  const given = words(topic);
  let at = 0;
  let position = 0;
  // After a mismatch only the last # takes one more word, so the cost is at most the product of both lengths.
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

/** Split into words; the empty topic has none. */
function words(text: string): string[] {
  return text === "" ? [] : text.split(".");
}
