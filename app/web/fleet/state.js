// What the page knows of the fleet. Events say that something has changed; what it is now is read again.

import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { Problem, get } from "../api.js";
import { index } from "../session.js";

const POLL_MS = 10_000; // whether etcd answers has no event
const SETTLE_MS = 120; // after an event, before what it may have changed is read again
const REST = 4; // for so many times what a read has taken, it is not read again: a large fleet is a long read

/** `leader`: null: no controller leads. `problem`: why etcd cannot be used; null: it can. */
export const readiness = signal(
  /** @type {{leader: string | null, warnings: string[], problem: string | null} | null} */ (null),
);
export const version = signal(/** @type {{version: string, etcd: string[], uptime_seconds: number} | null} */ (null));

/** Called with the type and the data of an event; or with null, where all may have changed. */
const listeners = new Set(/** @type {((type: string | null, data: any) => void)[]} */ ([]));

export async function loadReadiness() {
  try {
    const told = await get("/readyz");
    readiness.value = { leader: told.leader, warnings: told.warnings, problem: null };
    version.value ??= await get("/version");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 503) readiness.value = { leader: null, warnings: [], problem: error.message };
  }
}

/** Read all anew. */
export async function loadAll() {
  await loadReadiness();
  for (const listener of listeners) listener(null, null);
}

/** Ask again from time to time for what no event tells, while somebody looks. */
export function poll() {
  setInterval(() => {
    if (!document.hidden && index.value?.caller) void loadReadiness().catch(() => {});
  }, POLL_MS);
}

/** Take over one event of the stream. @param {string} type @param {any} data */
export function takeEvent(type, data) {
  if (type === "controller") void loadReadiness().catch(() => {});
  for (const listener of listeners) listener(type, data);
}

/**
 * What a read gives: again after each event that concerns it, but never so often that the server does nothing else.
 *
 * @template T
 * @param {(abort: AbortSignal) => Promise<T>} read
 * @param {unknown[]} keys When one of them changes, it is another read.
 * @param {(type: string, data: any) => boolean} [isConcerned]
 * @returns {{value: T | null, problem: unknown}} `value`: the last one; null: it was not read yet.
 */
export function useReading(read, keys, isConcerned = () => true) {
  const [answer, setAnswer] = useState(/** @type {{value: T | null, problem: unknown}} */ ({ value: null, problem: null }));
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    let isReading = false;
    let isStale = false;
    let took = 0;

    async function readNow() {
      timer = 0;
      isStale = false;
      isReading = true;
      const start = performance.now();
      try {
        const value = await read(abort.signal);
        if (!abort.signal.aborted) setAnswer({ value, problem: null });
      } catch (problem) {
        if (!abort.signal.aborted) setAnswer((now) => ({ ...now, problem }));
      }
      took = performance.now() - start;
      isReading = false;
      if (isStale) soon();
    }

    function soon() {
      isStale = true;
      if (!isReading && !timer && !abort.signal.aborted) timer = setTimeout(readNow, Math.max(SETTLE_MS, REST * took));
    }

    /** @param {string | null} type @param {any} data */
    const listener = (type, data) => void ((type === null || isConcerned(type, data)) && soon());
    setAnswer({ value: null, problem: null });
    void readNow();
    listeners.add(listener);
    return () => {
      listeners.delete(listener);
      clearTimeout(timer);
      abort.abort();
    };
  }, keys);
  return answer;
}

/** All tables. @returns {{value: import("./types.d.ts").Table[] | null, problem: unknown}} */
export const useTables = () =>
  useReading(
    async (abort) => (await get("/fleet/tables", {}, abort)).tables,
    [],
    (type) => type === "table" || type === "rollout",
  );

/** All nodes. @returns {{value: import("./types.d.ts").Node[] | null, problem: unknown}} */
export const useNodes = () =>
  useReading(
    async (abort) => (await get("/fleet/nodes", { limit: 10_000 }, abort)).nodes,
    [],
    (type) => type !== "controller",
  );

/**
 * The last rollouts, the newest first; of one table, or of all.
 *
 * @param {string | null} table
 * @param {number} limit
 * @returns {{value: import("./types.d.ts").RolloutSummary[] | null, problem: unknown}}
 */
export const useRollouts = (table, limit) =>
  useReading(
    async (abort) => (await get("/fleet/rollouts", { table, limit }, abort)).rollouts,
    [table, limit],
    (type) => type === "rollout",
  );
