// What every page knows: who asks and what their role allows, the time, and what the user is told.

import { signal } from "@preact/signals";
import { Problem, get } from "./api.js";

export const index = signal(/** @type {import("./types.d.ts").Index | null} */ (null));
/** Ticks each second, and each ten seconds: what shows a time reads one of them. */
export const second = signal(0);
export const tenSeconds = signal(0);
/** One message for the user; the last one counts. */
export const message = signal(/** @type {{text: string, isBad: boolean} | null} */ (null));

setInterval(() => {
  second.value += 1;
  if (second.value % 10 === 0) tenSeconds.value += 1;
}, 1000);

/** Ask who asks, before anything else. */
export async function loadIndex() {
  index.value = await get("/");
}

/** Tell the user something. @param {string} text */
export const tell = (text) => void (message.value = { text, isBad: false });

/** Tell the user that something failed. @param {unknown} error */
export function tellProblem(error) {
  if (error instanceof Problem && error.status === 401) return; // the page asks for a token then
  const text = error instanceof Problem ? `${error.title}: ${error.message}` : String(error);
  message.value = { text, isBad: true };
}

/**
 * Why the caller may not do what a role is needed for; null: it may. The service decides; this only says it beforehand.
 *
 * @param {"writer" | "admin"} role
 */
export function refusal(role) {
  const now = index.value;
  if (now === null) return "it is not known yet who asks";
  if (now.read_only) return "the service is read-only by its configuration";
  const has = now.caller?.role ?? "none";
  if (has === "admin" || has === role) return null;
  return `${now.caller?.actor ?? "the caller"} has the role ${has}; this needs ${role === "writer" ? "writer or admin" : "admin"}`;
}
