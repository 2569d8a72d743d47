// Edits that are collected and not applied yet, by map. They are kept while other views are open.

import { signal } from "@preact/signals";

/** @typedef {import("./types.d.ts").Target} Target */

/** By map: the edits, by index. @type {import("@preact/signals").Signal<Map<string, Map<number, Target>>>} */
export const drafts = signal(/** @type {Map<string, Map<number, Target>>} */ (new Map()));

/** @param {string} map @returns {ReadonlyMap<number, Target>} */
export const draftOf = (map) => drafts.value.get(map) ?? new Map();

/** Collect an edit for each of these entries. @param {string} map @param {number[]} indexes @param {Target} target */
export function edit(map, indexes, target) {
  const edits = new Map(draftOf(map));
  for (const index of indexes) edits.set(index, target);
  drafts.value = new Map(drafts.value).set(map, edits);
}

/** Forget the edits of these entries. @param {string} map @param {Iterable<number>} indexes */
export function forget(map, indexes) {
  const edits = new Map(draftOf(map));
  for (const index of indexes) edits.delete(index);
  drafts.value = new Map(drafts.value).set(map, edits);
}
