// The jump graph as the service tells it, and what of it belongs together.

import { useEffect, useState } from "preact/hooks";
import { Problem, send } from "./api.js";
import { onChange } from "./state.js";

/** @typedef {import("./types.d.ts").Graph} Graph */

const SETTLE_MS = 300; // after an event: reading the graph takes the service longer than other answers

/**
 * The graph, and kept up to date; or the problem with it.
 *
 * @param {string | null} map Only what is connected with this map; null: everything.
 * @param {boolean} [isWanted] false: nothing is read.
 * @returns {{graph: Graph | null, problem: Problem | null}}
 */
export function useGraph(map, isWanted = true) {
  const [graph, setGraph] = useState(/** @type {Graph | null} */ (null));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  useEffect(() => {
    if (!isWanted) return;
    const abort = new AbortController();
    let timer = 0;
    let before = "";
    const read = async () => {
      try {
        const text = await (await send("GET", "/graph", { query: { map }, abort: abort.signal })).text();
        if (text !== before) setGraph(JSON.parse(text)); // else the picture stays as it was moved
        before = text;
        setProblem(null);
      } catch (error) {
        if (!(error instanceof Problem)) return;
        before = "";
        setGraph(null);
        setProblem(error);
      }
    };
    void read();
    const stop = onChange(() => {
      clearTimeout(timer);
      timer = setTimeout(read, SETTLE_MS);
    });
    return () => {
      clearTimeout(timer);
      stop();
      abort.abort();
    };
  }, [map, isWanted]);
  return { graph, problem };
}

/** Whether a problem says that the service has no such route at all. @param {Problem} problem */
export const isAbsent = (problem) => problem.status === 404 && problem.code === "not-found";

/** The name of a program or an array of the graph. @param {{name: string | null, kernel_name: string, id: number}} node */
export const nodeName = (node) => node.name ?? (node.kernel_name ? `${node.kernel_name} #${node.id}` : `#${node.id}`);

/**
 * The parts of a graph that are not connected with each other: those with something held first, then by size.
 *
 * @param {Graph} graph
 * @returns {Graph[]}
 */
export function components(graph) {
  /** @type {Map<string, string>} */
  const parents = new Map();
  /** @param {string} node @returns {string} */
  const root = (node) => {
    let found = node;
    for (let parent; (parent = parents.get(found)) !== undefined && parent !== found; ) found = parent;
    return found;
  };
  /** @param {string} a @param {string} b */
  const join = (a, b) => void parents.set(root(a), root(b));
  for (const { id } of graph.programs) parents.set(`p${id}`, `p${id}`);
  for (const { id } of graph.arrays) parents.set(`a${id}`, `a${id}`);
  for (const { program, array } of graph.edges) join(`p${program}`, `a${array}`);
  for (const { id, entries } of graph.arrays) for (const { program } of entries ?? []) join(`p${program}`, `a${id}`);

  /** @type {Map<string, Graph>} */
  const parts = new Map();
  /** @param {string} node */
  const part = (node) => {
    const key = root(node);
    const known = parts.get(key);
    if (known) return known;
    /** @type {Graph} */
    const fresh = {
      programs: [], arrays: [], edges: [], attachments: [], unreached: { programs: [], entries: [] }, empty_jumps: [],
      cycles: [], longest_chain: null, unseen: graph.unseen,
    };
    parts.set(key, fresh);
    return fresh;
  };
  for (const each of graph.programs) part(`p${each.id}`).programs.push(each);
  for (const each of graph.arrays) part(`a${each.id}`).arrays.push(each);
  for (const each of graph.edges) part(`p${each.program}`).edges.push(each);
  for (const each of graph.attachments) part(`p${each.program}`).attachments.push(each);
  for (const each of graph.unreached.programs) part(`p${each.program}`).unreached.programs.push(each);
  for (const each of graph.unreached.entries) part(`a${each.array}`).unreached.entries.push(each);
  for (const each of graph.empty_jumps) part(`p${each.program}`).empty_jumps.push(each);
  for (const each of graph.cycles) part(`p${each.programs[0]}`).cycles.push(each);
  const chain = graph.longest_chain;
  if (chain) part(`p${chain.programs[0]}`).longest_chain = chain;
  const isHeld = (/** @type {Graph} */ each) => [...each.arrays, ...each.programs].some((node) => node.name !== null);
  return [...parts.values()].sort(
    (a, b) => Number(isHeld(b)) - Number(isHeld(a)) || b.arrays.length - a.arrays.length || b.programs.length - a.programs.length,
  );
}
