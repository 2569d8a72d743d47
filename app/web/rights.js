// What the caller may do to entries, so that what is refused is not offered, and the reason is told.
// The service decides; this only says it beforehand.

import { index, refusal } from "./session.js";
import { maps } from "./state.js";

/** Whether an index is in one of the ranges, given as "8-15" or "60". @param {string[]} ranges @param {number} index */
export function isWithin(ranges, index) {
  return ranges.some((range) => {
    const [first, last = first] = range.split("-").map(Number);
    return first !== undefined && last !== undefined && first <= index && index <= last;
  });
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
  const bounds = `it is beyond the bounds of ${caller.actor}`;
  if (caller.maps && !caller.maps.includes(map)) return bounds;
  const held = maps.value?.find((each) => each.name === map);
  if (held?.state === "unavailable") return held.reason ?? "the map is unavailable";
  if (held?.frozen) return "the array is frozen: the kernel takes no more changes";
  if (entry === null) return null;
  if (caller.entries !== null && !isWithin(caller.entries, entry)) return bounds;
  if (caller.role !== "admin" && held && isWithin(held.protected, entry))
    return "it is protected by the configuration: only an admin may change it";
  return null;
}
