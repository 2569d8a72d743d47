// The stream of events. EventSource cannot send a token, so this reads the stream of a fetch.

import { signal } from "@preact/signals";
import { askForToken, authorization } from "./api.js";
import { index, loadIndex } from "./session.js";

const SILENCE_MS = 40_000; // the service sends a comment every 15 s
const RETRY_MS = [500, 1000, 2000, 5000, 10_000];
const HIDDEN_MS = 60_000; // then a hidden page gives its connection back: a browser has six for one host

/**
 * Where events come from, and who learns of them. `load`: read all that views share. `take`: take over one event.
 *
 * @typedef {{path: string, load: () => Promise<void>, take: (type: string, data: any) => void}} Stream
 */

/**
 * `isRefused`: the service answers, and gives no stream.
 *
 * @typedef {{state: "connecting" | "live" | "cut off" | "paused", since: number, reason: string, isRefused: boolean}} Live
 */
export const live = signal(/** @type {Live} */ ({ state: "connecting", since: Date.now(), reason: "", isRefused: false }));

let lastId = /** @type {string | null} */ (null);
let wakeUp = () => {};
let controller = new AbortController();
let hiddenTimer = 0;
let isLoaded = false; // all that views share was read once

const isPaused = () => live.value.state === "paused";

/** @param {Live["state"]} state @param {string} [reason] @param {boolean} [isRefused] */
function become(state, reason = "", isRefused = false) {
  if (live.value.state !== state || live.value.reason !== reason) {
    const since = live.value.state === state ? live.value.since : Date.now();
    live.value = { state, since, reason, isRefused };
  }
}

/** Follow the events for as long as the page is open. It begins anew where it was cut off. @param {Stream} stream */
export async function follow(stream) {
  for (let attempt = 0; ; ) {
    if (isPaused()) {
      await pause(3_600_000);
      continue;
    }
    controller = new AbortController();
    try {
      await read(stream, () => (attempt = 0));
      become("cut off", "the service ended the stream");
    } catch (error) {
      if (isPaused()) continue;
      const isRefused = error instanceof Refused;
      become("cut off", isRefused ? error.message : "the service cannot be reached", isRefused);
      // What can be read without the stream: at the start, and where the service answers but gives no stream.
      if (isRefused || !isLoaded) await load(stream);
    }
    await pause(RETRY_MS[Math.min(attempt++, RETRY_MS.length - 1)] ?? 0);
  }
}

/** Read all that the views share: after the stream has begun, so that nothing is missed in between. @param {Stream} stream */
async function load(stream) {
  try {
    await loadIndex();
    if (!index.value?.caller) return;
    await stream.load();
    isLoaded = true;
  } catch {
    // The service is away again: the stream says so.
  }
}

/** Connect at once, with the token that is used now. */
export function reconnect() {
  controller.abort();
  become("connecting");
  wakeUp();
}

/** @param {number} milliseconds */
function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    wakeUp = () => {
      clearTimeout(timer);
      resolve(undefined);
    };
  });
}

addEventListener("online", () => wakeUp());
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) {
    hiddenTimer = setTimeout(() => {
      become("paused");
      controller.abort();
    }, HIDDEN_MS);
  } else if (isPaused()) {
    reconnect();
  } else if (live.value.state === "cut off") {
    wakeUp();
  }
});

class Refused extends Error {}

/** Read a stream to its end. @param {Stream} stream @param {() => void} onOpen */
async function read(stream, onOpen) {
  const response = await fetch(stream.path, {
    headers: { Accept: "text/event-stream", ...authorization(), ...(lastId === null ? {} : { "Last-Event-ID": lastId }) },
    cache: "no-store",
    signal: controller.signal,
  });
  if (!response.ok || response.body === null) {
    const problem = await response.json().catch(() => ({}));
    if (response.status === 410) lastId = null; // the service no longer has all since then: all is read anew
    if (response.status === 401) askForToken.value = problem.detail ?? "send a token";
    throw new Refused(problem.detail ?? `the service answered ${response.status}`);
  }
  onOpen();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let watchdog = 0;
  const stop = () => controller.abort();
  try {
    for (;;) {
      clearTimeout(watchdog);
      watchdog = setTimeout(stop, SILENCE_MS);
      const { done, value } = await reader.read();
      if (done) return;
      const searched = Math.max(0, buffer.length - 1);
      buffer += value;
      if (buffer.indexOf("\n\n", searched) < 0) continue; // a large change comes in many pieces
      const parts = buffer.split("\n\n");
      buffer = parts.pop() ?? "";
      for (const part of parts) take(stream, part);
      if (live.value.state !== "live") {
        become("live");
        void load(stream);
      }
    }
  } finally {
    clearTimeout(watchdog);
  }
}

/** Take one event, or the comment with which a stream begins. @param {Stream} stream @param {string} text */
function take(stream, text) {
  /** @type {Record<string, string>} */
  const fields = {};
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
    else if (colon === 0) lastId = /^: after event (\d+)$/.exec(line)?.[1] ?? lastId;
  }
  if (fields["event"] === undefined || fields["data"] === undefined) return;
  stream.take(fields["event"], JSON.parse(fields["data"]));
  lastId = fields["id"] ?? lastId;
}
