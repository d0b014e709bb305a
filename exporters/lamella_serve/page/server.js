/** Calls of the server's API, with the bearer token if it asks for one. */

import { at } from "./elements.js";
import { parse } from "./tensors.js";

const KEY = `lamella token of ${new URL(".", document.baseURI).pathname}`;

/** The server did not do what it was asked; status is 0 if that is not what an answer says. */
export class ServerError extends Error {
  constructor(status, reason) {
    super(status ? `${status}: ${reason}` : reason);
  }
}

/** Whether this server has asked for a token. */
export const hasToken = () => sessionStorage.getItem(KEY) !== null;

/**
 * Call the API: GET, or POST if there is a body.
 *
 * @param {string} path relative to the page, so that the server may stand under any prefix.
 * @returns {{answer, milliseconds}} the JSON, and the time until all of it was here.
 * @throws {ServerError}
 */
export async function call(path, body) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
    const options = body === undefined ? { headers } : { method: "POST", headers, body };
    const start = performance.now();
    let response, text;
    try {
      response = await fetch(path, options);
      text = await response.text();
    } catch {
      throw new ServerError(0, "The server does not answer. Is it still running?");
    }
    const milliseconds = performance.now() - start;
    if (response.status === 401) {
      await ask(token !== null);
      continue;
    }
    let answer;
    try {
      answer = parse(text);
    } catch {
      answer = null;
    }
    if (response.ok && answer !== null) return { answer, milliseconds };
    const reason = answer?.error ?? (text.slice(0, 500) || response.statusText);
    throw new ServerError(
      response.status,
      response.ok ? "The server answered with something that is no JSON." : reason,
    );
  }
}

let asking = null;

/** Ask the person for the token; all calls that wait for it share one dialog. */
function ask(again) {
  asking ??= new Promise((resolve, reject) => {
    at("access-told").textContent = again ? "The server did not take this token." : "";
    at("token").value = "";
    at("access").returnValue = "";
    at("access").onclose = () => {
      asking = null;
      if (at("access").returnValue !== "given") return reject(new ServerError(0, "The server asks for a token."));
      sessionStorage.setItem(KEY, at("token").value);
      resolve();
    };
    at("access").showModal();
  });
  return asking;
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  at("access").close("given");
});
at("access-cancel").addEventListener("click", () => at("access").close());
