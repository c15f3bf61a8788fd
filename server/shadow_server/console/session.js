// The key, and requests that carry it. It lives in this tab's sessionStorage and in one header, never in an address.

const SLOT = "shadowserve.key";

export const readKey = () => sessionStorage.getItem(SLOT) ?? "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(SLOT, key);
  else sessionStorage.removeItem(SLOT);
}

/** Whether a text can be a key at all: it has to fit into a header. */
export const isKey = (text) => /^[\x21-\x7e]*$/.test(text);

export const headersOf = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

/** Addresses are relative to the page, so that a prefix of a proxy stays in front of them. */
export const addressOf = (path) => new URL(path, document.baseURI).href;

/** An answer that is an error; status 0 when there was none. */
export class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function problemOf(status, text) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new Problem(status, code, message);
  } catch {
    return new Problem(status, null, `The server answered ${status}`);
  }
}

/**
 * @param {string} path
 * @param {{signal?: AbortSignal, body?: object}} options a body makes it a POST
 * @returns {Promise<Response>} a success
 */
export async function ask(path, { signal, body } = {}) {
  const headers = headersOf(readKey());
  if (body) headers["Content-Type"] = "application/json";
  const options = { signal, headers, cache: "no-store", credentials: "omit", redirect: "error" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const answer = await send(addressOf(path), options);
  if (!answer.ok) throw problemOf(answer.status, await answer.text());
  return answer;
}

async function send(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, null, "The server does not answer");
  }
}
