// Who did what, the newest first.

import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { get } from "../api.js";
import { clock } from "../format.js";
import { Ago, Loading, ProblemBox } from "../parts.js";
import { go, link } from "../route.js";
import { PhaseBadge } from "./marks.js";
import { useReading, useTables } from "./state.js";

/** @typedef {import("./types.d.ts").Action} Action */

const PAGE = 100;

/**
 * What was done.
 *
 * @param {{table?: string | null, node?: string | null, by?: string | null}} filters
 * @param {number} limit
 * @returns {{value: Action[] | null, problem: unknown}}
 */
export const useHistory = (filters, limit) =>
  useReading(
    async (abort) => (await get("/fleet/history", { ...filters, limit }, abort)).actions,
    [JSON.stringify(filters), limit],
    (type) => ["rollout", "table", "node"].includes(type),
  );

/** What somebody has done, in words. @param {{action: Action}} props */
function What({ action }) {
  const { what, table, node, rollout, phase, wave } = action;
  if (what === "rollout" && rollout !== null && phase !== null)
    return html`<a href=${link(["rollouts", rollout])}>${rollout}</a> <${PhaseBadge} phase=${phase} /> <span class="muted">wave ${(wave ?? 0) + 1}</span>`;
  if (what === "table_deleted") return html`<a href=${link(["tables", table ?? ""])}>${table}</a> was taken out of the fleet`;
  if (what === "node_deleted") return html`node <strong>${node}</strong> was removed`;
  return html`node <a href=${link(["nodes", node ?? ""])}>${node}</a> was added, or has other labels`;
}

/** @param {{actions: Action[]}} props */
export function Actions({ actions }) {
  if (actions.length === 0) return html`<p class="muted">Nothing that is still known.</p>`;
  return html`<div class="scroll">
    <table class="rows folding">
      <thead><tr><th>When</th><th>Who</th><th>What</th><th>Why</th></tr></thead>
      <tbody>
        ${actions.map(
          (each, place) => html`<tr key=${actions.length - place}>
            <td class="nowrap" title=${clock(each.at)}><${Ago} at=${each.at} /></td>
            <td class="actor nowrap">${each.by}</td>
            <td><${What} action=${each} /></td>
            <td class="sentence">${each.note}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** @param {{query: URLSearchParams}} props */
export function View({ query }) {
  const [length, setLength] = useState(PAGE);
  const filters = { table: query.get("table"), node: query.get("node"), by: query.get("by") };
  const { value, problem } = useHistory(filters, length);
  const tables = useTables().value ?? [];
  /** @param {string} name */
  const field = (name) => ({
    name,
    value: query.get(name) ?? "",
    onChange: (/** @type {any} */ event) => go(link(["history"], { ...filters, [name]: event.target.value.trim() }), true),
  });
  const isFiltered = Object.values(filters).some(Boolean);
  return html`<h1>History</h1>
    <section class="card" aria-label="Who did what">
      <form class="filters" aria-label="Filters" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
        <label>
          <span>Table</span>
          <select ...${field("table")}>
            <option value="">any</option>
            ${tables.map((each) => html`<option key=${each.table} value=${each.table} selected=${each.table === filters.table}>${each.table}</option>`)}
          </select>
        </label>
        <label><span>Node</span><input ...${field("node")} spellcheck="false" /></label>
        <label><span>Who</span><input ...${field("by")} placeholder="token:alice" spellcheck="false" /></label>
        ${isFiltered && html`<a class="clear" href=${link(["history"])}>All of it</a>`}
      </form>
      <${ProblemBox} error=${problem} />
      ${value === null ? problem === null && html`<${Loading} what="the history" />` : html`<${Actions} actions=${value} />`}
      ${value !== null && value.length === length && html`<p class="end"><button type="button" onClick=${() => setLength(length * 5)}>Read older ones</button></p>`}
    </section>`;
}
