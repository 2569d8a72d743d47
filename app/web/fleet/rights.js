// What the caller may do to tables and their rollouts, so that what is refused is not offered, and the reason is told.
// The server decides; this only says it beforehand.

import { index, refusal } from "../session.js";
import { covers, labelTexts, matches } from "./health.js";

/**
 * Why the caller may not lead the rollout of a revision; null: it may.
 *
 * @param {string} table
 * @param {import("./types.d.ts").Revision | null} revision null: it is not known.
 */
export function rolloutRefusal(table, revision) {
  const general = refusal("writer");
  if (general !== null) return general;
  const caller = index.value?.caller;
  if (!caller) return null;
  if (caller.tables && !caller.tables.includes(table)) return `the table is not among those of ${caller.actor}`;
  if (caller.labels && revision !== null && !matches(caller.labels, revision.selector.match))
    return `it is for nodes beyond the labels of ${caller.actor} (${labelTexts(caller.labels).join(", ")})`;
  return null;
}

/** Why the caller may not bring a revision to its nodes; null: it may. @param {import("./types.d.ts").Revision} revision */
export function revisionRefusal(revision) {
  const why = rolloutRefusal(revision.table, revision);
  if (why !== null) return why;
  const caller = index.value?.caller;
  if (!caller) return null;
  const [first = 0, last = first] = revision.range.split("-").map(Number);
  if (caller.entries !== null && !covers(caller.entries, first, last)) return `its range is beyond the entries of ${caller.actor}`;
  const { programs } = caller;
  if (programs !== null && revision.runs.some((run) => !programs.includes(run.program.name)))
    return `it has programs beyond those of ${caller.actor}`;
  return null;
}
