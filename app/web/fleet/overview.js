// The fleet at a glance: whether it can be led, its tables, which nodes need somebody, and the last rollouts.

import { html } from "htm/preact";
import { get } from "../api.js";
import { count, plural } from "../format.js";
import { Ago, Icon, Loading, ProblemBox } from "../parts.js";
import { link } from "../route.js";
import { KINDS, complaints, healthOf, labelTexts, stateOf } from "./health.js";
import { Labels, NodeBadge, NodeCount, PhaseBadge, RolloutRows, StateBar } from "./marks.js";
import { readiness, useNodes, useReading, useRollouts, useTables, version } from "./state.js";

/** @typedef {import("./types.d.ts").Node} Node */
/** @typedef {import("./types.d.ts").Table} Table */

const LAST = 8; // rollouts
const SHOWN = 10; // nodes that need somebody

function Readiness() {
  const now = readiness.value;
  if (now === null) return html`<${Loading} what="the state of the fleet" />`;
  if (now.problem !== null)
    return html`<div class="readiness bad" role="alert">
      <p><${Icon} name="warn" /><strong>etcd cannot be used</strong></p>
      <ul><li>${now.problem}</li><li>Nodes go on with what they have. No rollout goes on.</li></ul>
    </div>`;
  return html`<div class=${now.leader === null ? "readiness bad" : "readiness ok"} role=${now.leader === null ? "alert" : null}>
    ${now.leader === null
      ? html`<p><${Icon} name="warn" /><strong>No controller leads</strong> rollouts wait until one does</p>`
      : html`<p><${Icon} name="check" /><strong>Led</strong> by controller ${now.leader}</p>`}
    ${now.warnings.map((each) => html`<p class="note warn small" key=${each}><${Icon} name="warn" />${each}</p>`)}
  </div>`;
}

/** @param {{nodes: Node[] | null, tables: Table[] | null}} props */
function Facts({ nodes, tables }) {
  const facts = [
    ["Nodes", nodes === null ? "…" : count(nodes.length)],
    ["Tables", tables === null ? "…" : count(tables.length)],
    ["Version", version.value?.version ?? "…"],
    ["etcd", version.value === null ? "…" : [...new Set(version.value.etcd)].join(", ")],
  ];
  return html`<dl class="facts">
    ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** How nodes are, in numbers that lead to them. @param {{nodes: Node[], tables: Table[]}} props */
function Counts({ nodes, tables }) {
  if (nodes.length === 0) return html`<p class="muted">No node is known. <code>jumptable fleet node add NAME -l role=edge</code> adds one.</p>`;
  return html`<ul class="counts">
    ${Object.entries(KINDS).map(([kind, is]) => {
      const number = nodes.filter((each) => is(each, tables)).length;
      const level = number === 0 ? "none" : kind === "ready" ? "ok" : kind === "changing" ? "go" : "bad";
      return html`<li key=${kind}>
        <a class=${`count ${level}`} href=${link(["nodes"], { show: kind })}><strong>${count(number)}</strong> ${kind}</a>
      </li>`;
    })}
  </ul>`;
}

/** How far an open rollout is. @param {{id: string}} props */
function Progress({ id }) {
  const { value } = useReading(
    (abort) => get(`/fleet/rollouts/${id}`, {}, abort),
    [id],
    (type, data) => type === "presence" || data.table === id.slice(0, id.lastIndexOf("-")),
  );
  if (value === null) return html`<span class="muted">…</span>`;
  return html`<span class="progress">
    <a href=${link(["rollouts", id])}>revision ${value.revision}</a> <${PhaseBadge} phase=${value.phase} />
    <${StateBar} states=${value.states} />
    <span class="muted small">wave ${value.wave + 1} of ${value.waves.length}</span>
  </span>`;
}

/** @param {{table: Table, nodes: Node[] | null}} props */
function TableRow({ table, nodes }) {
  const health = nodes === null ? null : healthOf(table, nodes);
  const query = { table: table.table };
  return html`<tr>
    <td>
      <a class="name" href=${link(["tables", table.table])}>${table.table}</a>
      <p class="small"><${Labels} labels=${labelTexts(table.selector.match)} /></p>
    </td>
    <td>
      ${table.rollout ? html`<${Progress} id=${table.rollout} />` : html`<span>revision ${table.revision}</span>`}
      <p class="muted small"><${Ago} at=${table.at} /> by ${table.by}${table.note && html`<q>${table.note}</q>`}</p>
    </td>
    ${health === null
      ? html`<td colspan="4" class="muted">…</td>`
      : html`<td class="nowrap" data-name="Hold it">
            <a class=${health.holding.length === health.all.length ? "badge ok" : "badge go"} href=${link(["nodes"], query)}>${count(health.holding.length)} of ${count(health.all.length)}</a>
          </td>
          <td data-name="Away"><${NodeCount} count=${health.away.length} kind="bad" query=${{ ...query, show: "away" }} /></td>
          <td data-name="Drifted"><${NodeCount} count=${health.drifted.length} kind="bad" query=${{ ...query, show: "drifted" }} /></td>
          <td data-name="Not opened"><${NodeCount} count=${health.closed.length} kind="bad" query=${{ ...query, show: "not opened" }} /></td>`}
  </tr>`;
}

/** @param {{tables: Table[] | null, nodes: Node[] | null}} props */
function Tables({ tables, nodes }) {
  if (tables === null) return html`<${Loading} what="the tables" />`;
  if (tables.length === 0)
    return html`<p class="muted">There is no table, or none that you may see. <code>jumptable fleet apply -f table.yaml</code> brings one to its nodes.</p>`;
  return html`<div class="scroll">
    <table class="rows folding tables">
      <thead>
        <tr><th>Table</th><th>Revision</th><th>Nodes that hold it</th><th>Away</th><th>Drifted</th><th>Not opened</th></tr>
      </thead>
      <tbody>${tables.map((each) => html`<${TableRow} key=${each.table} table=${each} nodes=${nodes} />`)}</tbody>
    </table>
  </div>`;
}

/** Nodes that need somebody, each with its sentence. @param {{nodes: Node[], tables: Table[]}} props */
function Bad({ nodes, tables }) {
  const bad = nodes.map((node) => ({ node, why: complaints(node, tables) })).filter((each) => each.why.length > 0);
  if (bad.length === 0) return null;
  return html`<section class="card" aria-labelledby="bad">
    <header><h2 id="bad">Nodes that need somebody</h2></header>
    <ul class="sentences">
      ${bad.slice(0, SHOWN).map(
        ({ node, why }) => html`<li key=${node.node}>
          <a class="name" href=${link(["nodes", node.node])}>${node.node}</a> <${NodeBadge} state=${stateOf(node, tables)} />
          <span>${why.join("; ")}</span>
        </li>`,
      )}
    </ul>
    ${bad.length > SHOWN && html`<p class="muted">and ${plural(bad.length - SHOWN, "node", "nodes")} more: <a href=${link(["nodes"])}>all nodes</a></p>`}
  </section>`;
}

function LastRollouts() {
  const { value, problem } = useRollouts(null, LAST);
  if (value === null) return problem ? html`<${ProblemBox} error=${problem} />` : html`<${Loading} what="the rollouts" />`;
  if (value.length === 0) return html`<p class="muted">Nothing was rolled out yet.</p>`;
  return html`<${RolloutRows} rollouts=${value} />`;
}

export function Overview() {
  const tables = useTables();
  const nodes = useNodes();
  return html`
    <h1 class="hidden">Overview</h1>
    <${ProblemBox} error=${tables.problem ?? nodes.problem} />
    <section class="card glance" aria-label="State"><${Readiness} /><${Facts} nodes=${nodes.value} tables=${tables.value} /></section>
    <section class="card" aria-labelledby="tables"><h2 id="tables">Tables</h2><${Tables} tables=${tables.value} nodes=${nodes.value} /></section>
    <section class="card" aria-labelledby="nodes">
      <header><h2 id="nodes">Nodes</h2><a href=${link(["nodes"])}>All nodes</a></header>
      ${nodes.value === null || tables.value === null ? html`<${Loading} what="the nodes" />` : html`<${Counts} nodes=${nodes.value} tables=${tables.value} />`}
    </section>
    ${nodes.value !== null && tables.value !== null && html`<${Bad} nodes=${nodes.value} tables=${tables.value} />`}
    <section class="card" aria-labelledby="last">
      <header><h2 id="last">Last rollouts</h2><a href=${link(["rollouts"])}>All rollouts</a></header>
      <${LastRollouts} />
    </section>
  `;
}
