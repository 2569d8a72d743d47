// Requests to the service: JSON in and out, the token, and problems as exceptions.

import { signal } from "@preact/signals";

const KEPT = "jumptable.token"; // in sessionStorage, and only if the user asked for it

/** Why a token is asked for; null: none is. @type {import("@preact/signals").Signal<string | null>} */
export const askForToken = signal(/** @type {string | null} */ (null));

let token = sessionStorage.getItem(KEPT);
let clockOffset = 0; // of the service's clock from that of this browser, in milliseconds

/** An answer that is no success (RFC 9457). `facts` has the members of its code. */
export class Problem extends Error {
  /** @param {number} status @param {Record<string, any>} facts */
  constructor(status, facts) {
    super(facts.detail ?? `the service answered ${status}`);
    this.status = status;
    this.code = /** @type {string} */ (facts.code ?? "");
    this.title = /** @type {string} */ (facts.title ?? "The request failed");
    this.facts = facts;
  }
}

/** Use a token for every request from here on. @param {string | null} secret @param {boolean} keep In sessionStorage. */
export function useToken(secret, keep) {
  token = secret;
  sessionStorage.removeItem(KEPT);
  if (secret !== null && keep) sessionStorage.setItem(KEPT, secret);
}

export const hasToken = () => token !== null;

/** The time of the service, in milliseconds: deadlines are told in it. */
export const serverNow = () => Date.now() + clockOffset;

/** @returns {Record<string, string>} */
export const authorization = () => (token === null ? {} : { Authorization: `Bearer ${token}` });

/**
 * Send a request, and return the response if it is a success.
 *
 * @param {string} method
 * @param {string} path
 * @param {{query?: Record<string, string | number | boolean | null | undefined>, json?: unknown, body?: BodyInit,
 *   headers?: Record<string, string>, abort?: AbortSignal}} [options] Members of `query` that are null or "" are left out.
 * @returns {Promise<Response>}
 * @throws {Problem} The service refuses, or cannot be reached: then the status is 0.
 */
export async function send(method, path, { query = {}, json, body, headers = {}, abort } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
  const url = search.size ? `${path}?${search}` : path;
  let response;
  try {
    response = await fetch(url, {
      method,
      headers: {
        Accept: "application/json",
        ...authorization(),
        ...(json === undefined ? {} : { "Content-Type": "application/json" }),
        ...headers,
      },
      body: json === undefined ? (body ?? null) : JSON.stringify(json),
      cache: "no-store",
      signal: abort ?? null,
    });
  } catch (error) {
    if (abort?.aborted) throw error;
    throw new Problem(0, { title: "No answer", detail: "the service cannot be reached; it may have stopped" });
  }
  const date = Date.parse(response.headers.get("Date") ?? "");
  // The header has whole seconds, so a smaller difference says nothing.
  if (!Number.isNaN(date) && Math.abs(date + 500 - serverNow()) > 1500) clockOffset = date + 500 - Date.now();
  if (response.ok) return response;
  const facts = await response.json().catch(() => ({}));
  if (response.status === 401) askForToken.value = facts.detail ?? "send a token";
  throw new Problem(response.status, facts);
}

/**
 * GET a path, and return its JSON.
 *
 * @param {string} path
 * @param {Record<string, string | number | boolean | null | undefined>} [query]
 * @param {AbortSignal} [abort]
 * @returns {Promise<any>}
 */
export async function get(path, query, abort) {
  return (await send("GET", path, { ...(query ? { query } : {}), ...(abort ? { abort } : {}) })).json();
}
