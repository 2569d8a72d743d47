// What the page knows of a node. Views read these signals; loads and events write them.

import { batch, signal } from "@preact/signals";
import { Problem, get } from "./api.js";
import { giveColours } from "./colours.js";
import { index } from "./session.js";

/** @typedef {import("./types.d.ts").Change} Change */
/** @template T @typedef {import("@preact/signals").Signal<T>} Signal */

const POLL_MS = 10_000; // readiness has no event
const SETTLE_MS = 120; // after an event, before what it may have changed is asked for again
const RECENT = 50;
/** How many entries of a change lists show: one of a whole table has many. */
export const FIRST_ENTRIES = 3;
const USES = 256; // that are told of each program

export const version = signal(/** @type {import("./types.d.ts").Version | null} */ (null));
/** null: it is not known; []: ready; else why not. */
export const notReady = signal(/** @type {string[] | null} */ (null));
export const maps = signal(/** @type {import("./types.d.ts").HeldMap[] | null} */ (null));
export const programs = signal(/** @type {import("./types.d.ts").Program[] | null} */ (null));
/** The newest changes, newest first; null until a view asks for them, as changes of whole tables are long. */
export const recent = signal(/** @type {Change[] | null} */ (null));
/** A problem of loading what every view needs. */
export const loadProblem = signal(/** @type {Problem | null} */ (null));

/** Listeners of changes, each called with the map and the changed indexes, or null where they are not known. */
const listeners = new Set(/** @type {((map: string | null, change: Change | null) => void)[]} */ ([]));

/** @param {(map: string | null, change: Change | null) => void} listener @returns {() => void} */
export function onChange(listener) {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** Wait for loads, and return the first problem, or null. @param {Promise<void>[]} loads */
async function problemOf(loads) {
  const [failed] = (await Promise.allSettled(loads)).filter((each) => each.status === "rejected");
  if (failed === undefined) return null;
  if (failed.reason instanceof Problem) return failed.reason;
  throw failed.reason;
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
  const found = (await get("/programs", { uses: USES })).programs;
  batch(() => {
    giveColours(found.map((each) => each.name), programs.value === null);
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
