// How nodes are: in words, and for each table.

/** @typedef {import("./types.d.ts").Node} Node */
/** @typedef {import("./types.d.ts").Table} Table */

/** @param {string} range As in "8-63" or "60". @returns {[number, number]} */
function ends(range) {
  const [first = 0, last = first] = range.split("-").map(Number);
  return [first, last];
}

/** Whether ranges cover all indexes from the first to the last. @param {string[]} ranges @param {number} first @param {number} last */
export function covers(ranges, first, last) {
  let next = first;
  for (const [from, to] of ranges.map(ends).sort((a, b) => a[0] - b[0])) if (from <= next) next = Math.max(next, to + 1);
  return next > last;
}

/** Whether labels have all those of a selector. @param {Record<string, string>} selector @param {Record<string, string>} labels */
export const matches = (selector, labels) => Object.entries(selector).every(([name, value]) => labels[name] === value);

/** Labels as people write them. @param {Record<string, string>} labels */
export const labelTexts = (labels) => Object.entries(labels).map(([name, value]) => `${name}=${value}`);

/**
 * Why a node cannot take a table, as its own configuration does not open it to the fleet; null: it can, or it has not
 * said what is open.
 *
 * @param {Node} node @param {Table} table
 */
export function closedReason(node, table) {
  if (node.facts === null) return null;
  const map = node.facts.maps.find((each) => each.name === table.table);
  if (!map) return `${table.table} is not open to the fleet`;
  const [first, last] = ends(table.range);
  if (last >= map.max_entries) return `${table.table} has ${map.max_entries} entries; the table goes up to ${last}`;
  if (map.ranges !== null && !covers(map.ranges, first, last)) return `of ${table.table}, only ${map.ranges.join(", ") || "no entry"} is open to the fleet`;
  return null;
}

/**
 * Which nodes a table is for, and how they are.
 *
 * `holding`: they hold its newest revision. `failed`: they have said no to it, or taken it back.
 *
 * @param {Table} table @param {Node[]} nodes
 */
export function healthOf(table, nodes) {
  const all = nodes.filter((each) => matches(table.selector.match, each.labels));
  const said = (/** @type {Node} */ node) => node.tables.find((each) => each.table === table.table);
  return {
    all,
    holding: all.filter((each) => said(each)?.state === "applied" && said(each)?.wanted === table.revision),
    away: all.filter((each) => !each.alive),
    drifted: all.filter((each) => said(each)?.state === "drifted"),
    failed: all.filter((each) => ["refused", "unhealthy", "reverted"].includes(said(each)?.state ?? "")),
    closed: all.filter((each) => closedReason(each, table) !== null),
  };
}

/** Whether a table is for a node that is not open to it. @param {Node} node @param {Table[]} tables */
const isClosed = (node, tables) =>
  tables.some((each) => matches(each.selector.match, node.labels) && closedReason(node, each) !== null);

/** How a node is in a word. @param {Node} node @param {Table[]} tables */
export function stateOf(node, tables) {
  if (node.state === "unready") return "not ready";
  return node.state === "ready" && isClosed(node, tables) ? "not opened" : node.state;
}

/** What nodes are listed by, and which are meant. @type {Record<string, (node: Node, tables: Table[]) => boolean>} */
export const KINDS = {
  ready: (node, tables) => stateOf(node, tables) === "ready",
  changing: (node) => node.state === "changing",
  away: (node) => !node.alive,
  "not ready": (node) => node.state === "unready",
  failed: (node) => node.state === "failed",
  drifted: (node) => node.tables.some((each) => each.state === "drifted"),
  "not opened": isClosed,
};

/** What is to be said of a node, each in a sentence. @param {Node} node @param {Table[]} tables */
export function complaints(node, tables) {
  const found = [];
  if (!node.alive) found.push("its agent is not connected; it goes on with what it has");
  if (node.facts === null) found.push("it has not said anything yet");
  else if (!node.facts.ready) found.push(node.facts.detail || "its service is not ready");
  for (const each of node.tables)
    if (each.state !== null && FAILED.has(each.state)) found.push(`${each.table}: ${each.state}${each.detail ? `: ${each.detail}` : ""}`);
  for (const each of tables) {
    const why = matches(each.selector.match, node.labels) ? closedReason(node, each) : null;
    if (why !== null) found.push(why);
  }
  return found;
}

/** The answers that stop a rollout. */
export const FAILED = new Set(["refused", "unhealthy", "reverted", "drifted"]);
