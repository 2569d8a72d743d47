// What the caller may do to entries, so that what is refused is not offered, and the reason is told.
// The service decides; this only says it beforehand.

import { index, refusal } from "./session.js";
import { maps } from "./state.js";

/** The first and the last index of a range, given as "8-15" or "60". @param {string} range @returns {[number, number]} */
function ends(range) {
  const [first = 0, last = first] = range.split("-").map(Number);
  return [first, last];
}

/** Whether an index is in one of the ranges. @param {string[]} ranges @param {number} index */
function isWithin(ranges, index) {
  return ranges.some((range) => {
    const [first, last] = ends(range);
    return first <= index && index <= last;
  });
}

/** What lies beyond the bounds of the caller, in words. */
export const beyond = () => `it is beyond the bounds of ${index.value?.caller?.actor}`;

/** Whether the caller may not even see an entry. @param {number} entry */
export function isHidden(entry) {
  const entries = index.value?.caller?.entries ?? null;
  return entries !== null && !isWithin(entries, entry);
}

/** How many entries of a table the caller may see. @param {number} size max_entries */
export function visibleCount(size) {
  const entries = index.value?.caller?.entries ?? null;
  if (entries === null) return size;
  let [found, next] = [0, 0];
  for (const [first, last] of entries.map(ends).sort(([a], [b]) => a - b)) {
    const [from, to] = [Math.max(first, next), Math.min(last, size - 1)];
    found += Math.max(0, to - from + 1);
    next = Math.max(next, to + 1);
  }
  return found;
}

/**
 * Why the caller may not change an entry; null: it may.
 *
 * @param {string} map
 * @param {number | null} entry null: entries of this map at all.
 */
export function entryRefusal(map, entry) {
  const general = refusal("writer");
  if (general !== null) return general;
  const caller = index.value?.caller;
  if (!caller) return null;
  if (caller.maps && !caller.maps.includes(map)) return beyond();
  const held = maps.value?.find((each) => each.name === map);
  if (held?.state === "unavailable") return held.reason ?? "the map is unavailable";
  if (held?.frozen) return "the array is frozen: the kernel takes no more changes";
  if (entry === null) return null;
  if (isHidden(entry)) return beyond();
  if (caller.role !== "admin" && held && isWithin(held.protected, entry))
    return "it is protected by the configuration: only an admin may change it";
  return null;
}
