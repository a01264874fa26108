import type { GetToken, TokenReason } from "./types.js";

/** The tokens of an application, which is asked for one at a time: it may have to use up a token to get another. */
export class Tokens {
  readonly #getToken: GetToken | undefined;
  readonly #token: string | undefined;
  /** The token that the application is asked for. */
  #asked: Promise<string | null> | null = null;

  constructor(getToken: GetToken | undefined, token: string | undefined) {
    this.#getToken = getToken;
    this.#token = token;
  }

  /** Return a token: null if there are no more, undefined if a cookie has it. */
  ask(reason: TokenReason): Promise<string | null | undefined> {
    const getToken = this.#getToken;
    if (getToken === undefined) return Promise.resolve(this.#token);
    const ask = async () => (await getToken(reason)) ?? null;
    const asked = this.#asked;
    // A token that is being fetched will do, unless the last one was refused.
    if (asked !== null && reason !== "rejected") return asked;
    const answer = (this.#asked = asked === null ? ask() : asked.then(ask, ask));
    const done = () => {
      if (this.#asked === answer) this.#asked = null;
    };
    answer.then(done, done);
    return answer;
  }
}
