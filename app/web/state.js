// What the page knows of the service. Views read these signals; loads and events write them.

import { batch, signal } from "@preact/signals";
import { Problem, get } from "./api.js";

/** @typedef {import("./types.d.ts").Change} Change */
/** @template T @typedef {import("@preact/signals").Signal<T>} Signal */

const POLL_MS = 10_000; // readiness has no event
const SETTLE_MS = 120; // after an event, before what it may have changed is asked for again
const RECENT = 50;
/** How many entries of a change lists show: one of a whole table has many. */
export const FIRST_ENTRIES = 3;

export const index = signal(/** @type {import("./types.d.ts").Index | null} */ (null));
export const version = signal(/** @type {import("./types.d.ts").Version | null} */ (null));
/** null: it is not known; []: ready; else why not. */
export const notReady = signal(/** @type {string[] | null} */ (null));
export const maps = signal(/** @type {import("./types.d.ts").HeldMap[] | null} */ (null));
export const programs = signal(/** @type {import("./types.d.ts").Program[] | null} */ (null));
/** The newest changes, newest first; null until a view asks for them, as changes of whole tables are long. */
export const recent = signal(/** @type {Change[] | null} */ (null));
/** Ticks each second, and each ten seconds: what shows a time reads one of them. */
export const second = signal(0);
export const tenSeconds = signal(0);
/** One message for the user; the last one counts. */
export const message = signal(/** @type {{text: string, isBad: boolean} | null} */ (null));
/** A problem of loading what every view needs. */
export const loadProblem = signal(/** @type {Problem | null} */ (null));

setInterval(() => {
  second.value += 1;
  if (second.value % 10 === 0) tenSeconds.value += 1;
}, 1000);

/** Listeners of changes, each called with the map and the changed indexes, or null where they are not known. */
const listeners = new Set(/** @type {((map: string | null, change: Change | null) => void)[]} */ ([]));

/** @param {(map: string | null, change: Change | null) => void} listener @returns {() => void} */
export function onChange(listener) {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** Tell the user something. @param {string} text */
export const tell = (text) => void (message.value = { text, isBad: false });

/** Tell the user that something failed. @param {unknown} error */
export function tellProblem(error) {
  if (error instanceof Problem && error.status === 401) return; // the page asks for a token then
  const text = error instanceof Problem ? `${error.title}: ${error.message}` : String(error);
  message.value = { text, isBad: true };
}

/** Wait for loads, and return the first problem, or null. @param {Promise<void>[]} loads */
async function problemOf(loads) {
  const [failed] = (await Promise.allSettled(loads)).filter((each) => each.status === "rejected");
  if (failed === undefined) return null;
  if (failed.reason instanceof Problem) return failed.reason;
  throw failed.reason;
}

/** Ask who asks, before anything else. */
export async function loadIndex() {
  index.value = await get("/");
}

/** Ask for all that the views share: first for what is short and most looked at. */
export async function loadAll() {
  const problem = await problemOf([loadMaps(), loadReadiness()]);
  const again = recent.value === null ? [] : [loadRecent()];
  loadProblem.value = (await problemOf([...again, loadPrograms()])) ?? problem;
  for (const listener of listeners) listener(null, null);
}

export async function loadMaps() {
  maps.value = (await get("/maps")).maps;
}

export async function loadPrograms() {
  /** @type {import("./types.d.ts").Program[]} */
  const found = (await get("/programs")).programs;
  batch(() => {
    giveColours(found.map((each) => each.name));
    programs.value = found;
  });
}

export async function loadRecent() {
  recent.value = (await get("/changes", { order: "desc", limit: RECENT, entries: FIRST_ENTRIES })).changes;
}

export async function loadReadiness() {
  const [about, reasons] = await Promise.all([get("/version"), get("/readyz").then(() => [], whyNotReady)]);
  version.value = about;
  notReady.value = reasons;
}

/** @param {unknown} error @returns {string[]} */
function whyNotReady(error) {
  if (!(error instanceof Problem) || error.status !== 503) throw error;
  const reasons = error.facts["reasons"];
  return reasons?.length ? reasons : [error.message];
}

/** Ask again from time to time for what no event tells, while somebody looks. */
export function poll() {
  setInterval(() => {
    if (!document.hidden && index.value?.caller) void loadReadiness().catch(() => {});
  }, POLL_MS);
}

/** @type {{maps: boolean, programs: boolean}} */
const stale = { maps: false, programs: false };
let timer = 0;

function reloadSoon() {
  if (timer) return;
  timer = setTimeout(async () => {
    const loads = [];
    if (stale.maps) loads.push(loadMaps());
    if (stale.programs) loads.push(loadPrograms(), loadReadiness());
    stale.maps = stale.programs = false;
    loadProblem.value = await problemOf(loads);
    timer = 0;
    if (stale.maps || stale.programs) reloadSoon();
  }, SETTLE_MS);
}

/** Say that what `/maps` tells may have changed; with `programs`, what `/programs` does too. @param {{programs: boolean}} what */
export function mayHaveChanged(what) {
  stale.maps = true;
  stale.programs ||= what.programs;
  reloadSoon();
}

/**
 * Take over one event of the stream.
 *
 * @param {string} type
 * @param {any} data
 */
export function takeEvent(type, data) {
  if (type === "change" || type === "confirmed" || type === "expired") {
    batch(() => takeChange(data));
    for (const listener of listeners) listener(data.map, data);
    mayHaveChanged({ programs: false }); // where programs are used takes long to tell, and few views show it
  } else {
    mayHaveChanged({ programs: true });
    for (const listener of listeners) listener(data.map ?? null, null);
  }
}

/** @param {Change} change */
function takeChange(change) {
  if (recent.value === null) return;
  const known = recent.value.map((each) =>
    each.id === change.reverts && change.kind === "revert" ? { ...each, state: /** @type {const} */ ("reverted") } : each,
  );
  const others = known.filter((each) => each.id !== change.id);
  const short = { ...change, entries: change.entries.slice(0, FIRST_ENTRIES) };
  recent.value = [...others, short].sort((a, b) => b.id - a.id).slice(0, RECENT);
}

const HUES = 12;
const COLOURS = 2 * HUES; // each hue in a light and in a deep tone
/** The place of each program in the palette, by name. */
const places = new Map(/** @type {[string, number][]} */ ([]));
/** Rises when programs get other colours. */
export const colouring = signal(0);

/**
 * The place that follows from a name. Two names get the same only where there are more of them than colours.
 *
 * @param {string} name
 */
function placeOf(name) {
  let place = places.get(name);
  if (place === undefined) {
    place = [...name].reduce((sum, each) => (sum * 31 + (each.codePointAt(0) ?? 0)) % 9973, 7) % COLOURS;
    const taken = new Set(places.values());
    while (taken.size < COLOURS && taken.has(place)) place = (place + 1) % COLOURS;
    places.set(name, place);
  }
  return place;
}

/** Give colours to the held programs: everybody who opens the page sees the same. @param {string[]} names */
function giveColours(names) {
  if (programs.value === null && places.size > 0) {
    places.clear(); // what was shown before had them in the order in which it came
    colouring.value += 1;
  }
  for (const name of names.toSorted()) placeOf(name);
}

/**
 * The class with the colour of a program: the same one wherever it is shown.
 *
 * @param {{name: string | null, id: number | null} | null} program
 */
export function colour(program) {
  if (program === null) return "";
  if (program.name === null) return "other";
  colouring.value; // whoever shows a colour is drawn again when it is another one
  const place = placeOf(program.name);
  return `hue p${place % HUES}${place < HUES ? "" : " deep"}`;
}
