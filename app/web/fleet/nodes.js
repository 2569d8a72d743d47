// Nodes: their list with a filter; and one of them.

import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { get } from "../api.js";
import { clock, count, plural } from "../format.js";
import { Ago, Icon, Loading, ProblemBox } from "../parts.js";
import { go, link } from "../route.js";
import { Actions, useHistory } from "./history.js";
import { FAILED, KINDS, closedReason, complaints, labelTexts, matches, stateOf } from "./health.js";
import { Labels, NodeBadge, StateMark } from "./marks.js";
import { useNodes, useReading, useTables } from "./state.js";

/** @typedef {import("./types.d.ts").Node} Node */
/** @typedef {import("./types.d.ts").NodeTable} NodeTable */
/** @typedef {import("./types.d.ts").Table} Table */

const PAGE = 100;

/** The tables that a node is for, and what it says of each; also those that it has from before. @param {Node} node @param {Table[]} tables */
function tablesOf(node, tables) {
  const meant = tables.filter((each) => matches(each.selector.match, node.labels)).map((each) => each.table);
  const names = new Set([...node.tables.map((each) => each.table), ...meant]);
  return [...names].sort().map((name) => ({ name, said: node.tables.find((each) => each.table === name) ?? null }));
}

/** The state of a table on a node as a mark. @param {NodeTable | null} said */
function markOf(said) {
  if (said === null || said.wanted === null) return "waiting";
  return said.state ?? "told";
}

/** @param {{node: Node, tables: Table[]}} props */
function NodeRow({ node, tables }) {
  return html`<tr>
    <td class="nowrap"><a class="name" href=${link(["nodes", node.node])}>${node.node}</a></td>
    <td><${NodeBadge} state=${stateOf(node, tables)} /></td>
    <td><${Labels} labels=${labelTexts(node.labels)} /></td>
    <td>
      ${tablesOf(node, tables).map(
        ({ name, said }) => html`<p class="nowrap" key=${name}>
          <a href=${link(["tables", name])}>${name}</a> ${said?.revision ?? ""} <${StateMark} state=${markOf(said)} />
        </p>`,
      )}
    </td>
    <td class="sentence">${complaints(node, tables).join("; ")}</td>
    <td class="wide muted">${node.facts?.version ?? ""}</td>
  </tr>`;
}

/** Whether a node has a text in its name or labels; several words must all be there. @param {Node} node @param {string} text */
function has(node, text) {
  const all = [node.node, ...labelTexts(node.labels)].join(" ").toLowerCase();
  return text
    .toLowerCase()
    .split(/[\s,]+/)
    .every((word) => all.includes(word));
}

/** @param {{query: URLSearchParams}} props */
function List({ query }) {
  const nodes = useNodes();
  const tables = useTables();
  const [length, setLength] = useState(PAGE);
  const filters = { text: query.get("text") ?? "", show: query.get("show") ?? "", table: query.get("table") ?? "" };
  /** @param {Partial<typeof filters>} changed */
  const set = (changed) => {
    setLength(PAGE);
    go(link(["nodes"], { ...filters, ...changed }), true);
  };
  const known = tables.value ?? [];
  const table = known.find((each) => each.table === filters.table);
  const is = KINDS[filters.show];
  const found = (nodes.value ?? []).filter(
    (each) =>
      has(each, filters.text) &&
      (table === undefined || matches(table.selector.match, each.labels)) &&
      (is === undefined || is(each, table === undefined ? known : [table])),
  );
  const isFiltered = Object.values(filters).some(Boolean);
  return html`<h1>Nodes</h1>
    <section class="card" aria-label="Nodes">
      <form class="filters" aria-label="Filters" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
        <label><span>Name or label</span><input name="text" placeholder="edge-1, site=fra" spellcheck="false" value=${filters.text} onInput=${(/** @type {any} */ event) => set({ text: event.target.value })} /></label>
        <label>
          <span>State</span>
          <select name="show" onChange=${(/** @type {any} */ event) => set({ show: event.target.value })}>
            <option value="">any</option>
            ${Object.keys(KINDS).map((each) => html`<option key=${each} value=${each} selected=${each === filters.show}>${each}</option>`)}
          </select>
        </label>
        <label>
          <span>For table</span>
          <select name="table" onChange=${(/** @type {any} */ event) => set({ table: event.target.value })}>
            <option value="">any</option>
            ${known.map((each) => html`<option key=${each.table} value=${each.table} selected=${each.table === filters.table}>${each.table}</option>`)}
          </select>
        </label>
        ${isFiltered && html`<a class="clear" href=${link(["nodes"])}>All nodes</a>`}
      </form>
      <${ProblemBox} error=${nodes.problem ?? tables.problem} />
      ${nodes.value === null || tables.value === null
        ? html`<${Loading} what="the nodes" />`
        : html`<p class="muted" role="status">${isFiltered ? `${count(found.length)} of ${plural(nodes.value.length, "node", "nodes")}` : plural(found.length, "node", "nodes")}</p>
            ${found.length > 0 &&
            html`<div class="scroll">
              <table class="rows folding">
                <thead><tr><th>Node</th><th>State</th><th>Labels</th><th>Tables</th><th>What is wrong</th><th class="wide">Version</th></tr></thead>
                <tbody>${found.slice(0, length).map((each) => html`<${NodeRow} key=${each.node} node=${each} tables=${known} />`)}</tbody>
              </table>
            </div>`}
            ${found.length > length &&
            html`<p class="end"><button type="button" onClick=${() => setLength(length + 5 * PAGE)}>Show more: ${count(found.length - length)} are left</button></p>`}`}
    </section>`;
}

/** @param {{said: NodeTable}} props */
function Sentence({ said }) {
  if (said.state === null) return html`it was asked for revision ${said.wanted}, and has not answered yet`;
  return html`${said.detail}${said.code && html` <code class="muted">${said.code}</code>`}${said.indexes.length > 0 && html` (entries ${said.indexes.join(", ")})`}`;
}

/** @param {{node: Node, tables: Table[]}} props */
function NodeTables({ node, tables }) {
  const all = tablesOf(node, tables);
  if (all.length === 0) return html`<p class="muted">No table is for its labels.</p>`;
  return html`<div class="scroll">
    <table class="rows folding">
      <thead><tr><th>Table</th><th>State</th><th class="number">Holds</th><th class="number">Is to hold</th><th>What it says</th><th>When</th></tr></thead>
      <tbody>
        ${all.map(({ name, said }) => {
          const table = tables.find((each) => each.table === name);
          const closed = table ? closedReason(node, table) : null;
          return html`<tr key=${name}>
            <td><a class="name" href=${link(["tables", name])}>${name}</a></td>
            <td><${StateMark} state=${markOf(said)} /></td>
            <td class="number" data-name="Holds">${said?.revision ?? "–"}</td>
            <td class="number" data-name="Is to hold">${said?.wanted ?? "–"}</td>
            <td class=${said !== null && FAILED.has(said.state ?? "") ? "sentence bad" : "sentence"}>
              ${said === null || said.wanted === null ? "no rollout has asked it so far" : html`<${Sentence} said=${said} />`}
              ${said?.change && html`<span class="muted"> change ${said.change} in its journal</span>`}
              ${closed !== null && html`<p class="note warn small"><${Icon} name="lock" />${closed}</p>`}
            </td>
            <td class="nowrap">${said?.at && html`<${Ago} at=${said.at} />`}</td>
          </tr>`;
        })}
      </tbody>
    </table>
  </div>`;
}

/** What the node's own configuration opens to the fleet. @param {{node: Node}} props */
function Opened({ node }) {
  if (node.facts === null) return html`<p class="muted">It has not said anything yet.</p>`;
  if (node.facts.maps.length === 0)
    return html`<p class="note warn"><${Icon} name="lock" />Nothing: its own configuration lets the fleet change no map.</p>`;
  return html`<ul class="sentences">
    ${node.facts.maps.map(
      (each) => html`<li key=${each.name}>
        <strong>${each.name}</strong>
        <span>${each.ranges === null ? `all ${plural(each.max_entries, "entry", "entries")}` : `${each.ranges.join(", ") || "no entry"} of ${plural(each.max_entries, "entry", "entries")}`}</span>
      </li>`,
    )}
  </ul>`;
}

/** @param {{name: string}} props */
function Single({ name }) {
  const { value: node, problem } = useReading(
    async (abort) => /** @type {Node} */ (await get(`/fleet/nodes/${encodeURIComponent(name)}`, {}, abort)),
    [name],
    (type, data) => type === "table" || data.node === name,
  );
  const tables = useTables().value;
  const history = useHistory({ node: name }, 20);
  if (node === null || tables === null)
    return html`<h1>Node ${name}</h1>${problem ? html`<${ProblemBox} error=${problem} />` : html`<${Loading} what="the node" />`}`;
  const wrong = complaints(node, tables);
  return html`
    <div class="head"><h1>Node ${name}</h1><${NodeBadge} state=${stateOf(node, tables)} /><${Labels} labels=${labelTexts(node.labels)} /></div>
    <${ProblemBox} error=${problem} />
    ${wrong.length > 0 && html`<div class="note bad"><${Icon} name="warn" /><ul>${wrong.map((each) => html`<li key=${each}>${each}</li>`)}</ul></div>`}
    <section class="card" aria-labelledby="tables"><h2 id="tables">Tables</h2><${NodeTables} node=${node} tables=${tables} /></section>
    <div class="halves">
      <section class="card" aria-labelledby="facts">
        <h2 id="facts">The node</h2>
        <dl class="pairs">
          <dt>Agent</dt><dd>${node.since ? html`connected since ${clock(node.since)}` : "not connected"}</dd>
          <dt>Version</dt><dd>${node.facts?.version ?? "not known"}</dd>
          <dt>Kernel</dt><dd>${node.facts?.kernel ?? "not known"}</dd>
          <dt>User</dt><dd><code>${node.user}</code> in etcd</dd>
          <dt>Labels</dt><dd>of ${clock(node.at)}, by ${node.by}</dd>
        </dl>
      </section>
      <section class="card" aria-labelledby="opened"><h2 id="opened">What it opens to the fleet</h2><${Opened} node=${node} /></section>
    </div>
    <section class="card" aria-labelledby="history">
      <header><h2 id="history">Who did what to it</h2><a href=${link(["history"], { node: name })}>All of it</a></header>
      <${ProblemBox} error=${history.problem} />
      ${history.value !== null && html`<${Actions} actions=${history.value} />`}
    </section>
  `;
}

/** @param {{path: string[], query: URLSearchParams}} props */
export function View({ path, query }) {
  const [name] = path;
  return name === undefined ? html`<${List} query=${query} />` : html`<${Single} name=${name} />`;
}
