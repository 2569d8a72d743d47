// The entries of one table, as far as somebody looks at them: a table of 2^20 entries is not read as a whole.

import { signal } from "@preact/signals";
import { get } from "./api.js";
import { onChange, programs } from "./state.js";

/** @typedef {import("./types.d.ts").EntryProgram} EntryProgram */

export const CHUNK = 1024; // entries that are asked for at a time, at least
const SETTLE_MS = 60; // of scrolling, or of events

export class TableData {
  /** @param {string} map @param {number} size max_entries */
  constructor(map, size) {
    this.map = map;
    this.size = size;
    /** Rises when anything that is shown may have changed. */
    this.revision = signal(0);
    /** @type {import("@preact/signals").Signal<unknown>} */
    this.problem = signal(/** @type {unknown} */ (null));
    /** @type {Map<number, EntryProgram>} */
    this.entries = new Map();
    /** Chunks that were read, and those of them that are still as they were read. @type {Set<number>} */
    this.known = new Set();
    /** @type {Set<number>} */
    this.fresh = new Set();
    this.first = 0; // the window that is looked at
    this.last = -1;
    this.timer = 0;
    this.isReading = false;
    this.stop = onChange((name, change) => {
      if (name !== null && name !== map) return;
      this.fresh.clear();
      if (change) this.apply(change);
      this.readSoon();
    });
  }

  /** Say which entries are looked at. @param {number} first @param {number} last */
  look(first, last) {
    if (first === this.first && last === this.last) return;
    const isFirst = this.last < 0;
    this.first = Math.max(0, first);
    this.last = Math.min(this.size - 1, last);
    if (isFirst) void this.read();
    else this.readSoon();
  }

  /** Whether an entry was read. @param {number} index */
  isKnown(index) {
    return this.known.has(Math.floor(index / CHUNK));
  }

  readSoon() {
    if (!this.timer)
      this.timer = setTimeout(() => {
        this.timer = 0;
        void this.read();
      }, SETTLE_MS);
  }

  /** Read what is looked at and not fresh. */
  async read() {
    if (this.isReading || this.last < 0) return;
    this.isReading = true;
    try {
      // What is looked at, and then what lies beside it, as it may come into sight next.
      for (let missing; (missing = this.missing(0) ?? this.missing(CHUNK)); ) await this.readFrom(...missing);
      this.problem.value = null;
    } catch (error) {
      this.problem.value = error;
    } finally {
      this.isReading = false;
    }
  }

  /**
   * The first and the last of the chunks that are missing, or null.
   *
   * @param {number} around Entries on both sides of what is looked at.
   * @returns {[number, number] | null}
   */
  missing(around) {
    let first = Math.floor(Math.max(0, this.first - around) / CHUNK);
    let last = Math.floor(Math.min(this.size - 1, this.last + around) / CHUNK);
    while (first <= last && this.fresh.has(first)) first += 1;
    while (last >= first && this.fresh.has(last)) last -= 1;
    return first > last ? null : [first, last];
  }

  /** @param {number} first @param {number} last Chunks. */
  async readFrom(first, last) {
    for (let chunk = first; chunk <= last; chunk++) this.fresh.add(chunk); // an event takes it away again
    const [start, end] = [first * CHUNK, Math.min(this.size, (last + 1) * CHUNK)];
    /** @type {import("./types.d.ts").Entries} */
    let page;
    try {
      page = await get(`/maps/${this.map}/entries`, { start, limit: end - start });
    } catch (error) {
      for (let chunk = first; chunk <= last; chunk++) this.fresh.delete(chunk);
      throw error;
    }
    // Of a sparse table the page goes further than it was asked to. Whole chunks of that are taken over as well.
    const covered = page.next === null ? this.size : Math.max(end, Math.floor(page.next / CHUNK) * CHUNK);
    for (let index = start; index < end; index++) this.entries.delete(index);
    if (covered > end) for (const index of this.entries.keys()) if (index >= end && index < covered) this.entries.delete(index);
    for (const entry of page.entries) if (entry.index < covered) this.entries.set(entry.index, entry.program);
    for (let chunk = first; chunk * CHUNK < covered; chunk++) {
      if (chunk > last) this.fresh.add(chunk);
      this.known.add(chunk);
    }
    this.revision.value += 1;
  }

  /** Show at once what a change has put there. @param {import("./types.d.ts").Change} change */
  apply(change) {
    for (const { index, after } of change.entries) {
      if (after === null) this.entries.delete(index);
      else {
        const held = programs.value?.find((each) => each.name === after.name);
        this.entries.set(index, {
          name: after.name,
          id: after.id ?? 0,
          tag: after.tag,
          type: held?.type ?? null,
          kernel_name: held?.kernel_name ?? null,
          loaded_at: held?.loaded_at ?? null,
        });
      }
    }
    this.revision.value += 1;
  }
}
