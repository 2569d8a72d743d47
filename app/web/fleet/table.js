// A table: what it is to hold, on which nodes; its revisions, and going back to one of them.

import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Problem, get, send } from "../api.js";
import { colour } from "../colours.js";
import { count, plural } from "../format.js";
import { Action, Ago, Dialog, Icon, Loading, ProblemBox } from "../parts.js";
import { go, link } from "../route.js";
import { tell } from "../session.js";
import { healthOf } from "./health.js";
import { NodeCount, PhaseBadge } from "./marks.js";
import { revisionRefusal } from "./rights.js";
import { StrategyFacts } from "./rollouts.js";
import { useNodes, useReading, useRollouts, useTables } from "./state.js";

/** @typedef {import("./types.d.ts").Revision} Revision */
/** @typedef {import("./types.d.ts").Table} Table */

const PAGE = 10; // revisions
const RUNS = 60; // that are shown of a revision
const REFUSALS = 10; // that a dry run shows

/** What the entries of a revision hold. @param {{revision: Revision}} props */
function Runs({ revision }) {
  if (revision.runs.length === 0) return html`<p class="muted">All entries of its range are empty.</p>`;
  return html`<ul class="runs">
      ${revision.runs.slice(0, RUNS).map(
        (each) => html`<li key=${each.first}>
          <code>${each.first === each.last ? each.first : `${each.first}–${each.last}`}</code>
          <span class=${`chip ${colour({ name: each.program.name, id: null })}`}>${each.program.name}</span>
          ${each.program.tags.length > 0 && html`<code class="muted small">${each.program.tags.join(" ")}</code>`}
        </li>`,
      )}
    </ul>
    ${revision.runs.length > RUNS && html`<p class="muted">and ${plural(revision.runs.length - RUNS, "run", "runs")} more</p>`}`;
}

/** What a rollout would do, as each node that is connected says. @param {{answer: import("./types.d.ts").DryRun}} props */
function DryRun({ answer }) {
  const bad = answer.nodes.filter((each) => each.answer === "refuses" || each.answer === "silent");
  return html`<p class=${bad.length ? "note warn" : "note ok"}>
      <${Icon} name=${bad.length ? "warn" : "check"} />
      <span>
        ${plural(answer.accepts, "node takes", "nodes take")} it, in ${plural(answer.waves.length, "wave", "waves")} of
        ${" "}${answer.waves.map((each) => count(each.length)).join(", ")}; ${plural(answer.changed, "entry changes", "entries change")}.
        ${answer.refuses > 0 && ` ${plural(answer.refuses, "node refuses", "nodes refuse")} it.`}
        ${answer.silent > 0 && ` ${plural(answer.silent, "node has", "nodes have")} not answered.`}
        ${answer.away > 0 && ` ${plural(answer.away, "node is", "nodes are")} away.`}
      </span>
    </p>
    <${Refusals} nodes=${bad} />`;
}

/** Nodes that do not take a table, and why. @param {{nodes: {node: string, detail: string}[]}} props */
function Refusals({ nodes }) {
  if (nodes.length === 0) return null;
  return html`<ul class="sentences">
    ${nodes.slice(0, REFUSALS).map((each) => html`<li key=${each.node}><strong>${each.node}</strong> <span>${each.detail}</span></li>`)}
    ${nodes.length > REFUSALS && html`<li class="muted">and ${plural(nodes.length - REFUSALS, "node", "nodes")} more</li>`}
  </ul>`;
}

/** The nodes that a problem names, and what is wrong with each. @param {unknown} problem @returns {{node: string, detail: string}[]} */
function named(problem) {
  if (!(problem instanceof Problem) || !Array.isArray(problem.facts["nodes"])) return [];
  return problem.facts["nodes"].map((each) => ({ node: each.node, detail: each.reason }));
}

/** The dialog that brings an earlier revision to its nodes. @param {{table: Table, revision: Revision, onClose: () => void}} props */
function GoBack({ table, revision, onClose }) {
  const [answer, setAnswer] = useState(/** @type {import("./types.d.ts").DryRun | null} */ (null));
  const [note, setNote] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState(/** @type {unknown} */ (null));
  const isNewest = revision.revision === table.revision;
  const [etag] = useState(table.etag); // what somebody else writes meanwhile is not overwritten
  const json = { table: table.table, revision: revision.revision };

  useEffect(() => {
    const abort = new AbortController();
    send("POST", "/fleet/rollouts", { query: { dry_run: true }, json, abort: abort.signal }).then(
      async (response) => setAnswer(await response.json()),
      (error) => abort.signal.aborted || setProblem(error),
    );
    return () => abort.abort();
  }, []);

  async function start() {
    setBusy(true);
    try {
      const response = await send("POST", "/fleet/rollouts", { query: { note: note.trim() }, json, headers: { "If-Match": etag } });
      const { rollout } = await response.json();
      onClose();
      tell(rollout === null ? "All of its nodes hold it already." : `Rollout ${rollout} has started.`);
      if (rollout !== null) go(link(["rollouts", rollout]));
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  }
  return html`<${Dialog} title=${isNewest ? `Bring revision ${revision.revision} to its nodes again` : `Go back to revision ${revision.revision}`} onClose=${onClose}>
    <p>
      A new revision of ${table.table} with the content of revision ${revision.revision} goes to its nodes, canary first, then in waves.
    </p>
    <${ProblemBox} error=${problem} />
    <${Refusals} nodes=${named(problem)} />
    ${answer === null ? problem === null && html`<${Loading} what="what each node says to it" />` : html`<${DryRun} answer=${answer} />`}
    <label>
      <span>Why, for the history</span>
      <input name="note" maxlength="1000" value=${note} onInput=${(/** @type {any} */ event) => setNote(event.target.value)} />
    </label>
    <div class="stack"><footer>
      <button type="button" onClick=${onClose}>Leave it</button>
      <${Action} kind="primary" why=${isBusy ? "it is under way" : answer === null ? "the nodes have not answered yet" : null} onPress=${() => void start()}>
        <${Icon} name="play" />Start the rollout
      <//>
    </footer></div>
  <//>`;
}

/**
 * @param {{revision: Revision, table: Table | null, phase: import("./types.d.ts").Phase | undefined, rollout: string, isNewest: boolean, onGo: () => void}} props
 */
function RevisionItem({ revision, table, phase, rollout, isNewest, onGo }) {
  const [isOpen, setOpen] = useState(isNewest);
  const why =
    table === null
      ? "the table was taken out of the fleet"
      : table.rollout !== null
        ? `its rollout ${table.rollout} has not ended`
        : revisionRefusal(revision);
  return html`<li class="revision">
    <div class="line">
      <button type="button" class="plain id" aria-expanded=${isOpen} aria-label=${`Revision ${revision.revision}, ${isOpen ? "show less" : "show what it holds"}`} onClick=${() => setOpen(!isOpen)}>
        ${revision.revision}
      </button>
      <span class="what">
        <${Ago} at=${revision.at} /> by ${revision.by}${revision.note && html`<q>${revision.note}</q>`}
        ${revision.same_as !== null && html`<span class="muted"> as revision ${revision.same_as}</span>`}
      </span>
      ${phase && html`<a href=${link(["rollouts", rollout])}><span class="hidden">Rollout ${rollout}: </span><${PhaseBadge} phase=${phase} /></a>`}
      <${Action} why=${why} label=${isNewest ? `Bring revision ${revision.revision} to its nodes again` : `Go back to revision ${revision.revision}`} onPress=${onGo}>
        <${Icon} name=${isNewest ? "play" : "undo"} />${isNewest ? "Again …" : "Go back …"}
      <//>
    </div>
    ${isOpen && html`<div class="details"><${Runs} revision=${revision} /><details><summary>How it went to its nodes</summary><${StrategyFacts} revision=${revision} /></details></div>`}
  </li>`;
}

/** @param {{table: Table}} props */
function Nodes({ table }) {
  const nodes = useNodes().value;
  if (nodes === null) return html`<${Loading} what="its nodes" />`;
  const health = healthOf(table, nodes);
  const query = { table: table.table };
  return html`<dl class="facts">
    <div><dt>Hold revision ${table.revision}</dt><dd><a href=${link(["nodes"], query)}>${count(health.holding.length)} of ${plural(health.all.length, "node", "nodes")}</a></dd></div>
    <div><dt>Away</dt><dd><${NodeCount} count=${health.away.length} kind="bad" query=${{ ...query, show: "away" }} /></dd></div>
    <div><dt>Drifted</dt><dd><${NodeCount} count=${health.drifted.length} kind="bad" query=${{ ...query, show: "drifted" }} /></dd></div>
    <div><dt>Failed</dt><dd><${NodeCount} count=${health.failed.length} kind="bad" query=${{ ...query, show: "failed" }} /></dd></div>
    <div><dt>Not opened</dt><dd><${NodeCount} count=${health.closed.length} kind="bad" query=${{ ...query, show: "not opened" }} /></dd></div>
  </dl>`;
}

/** @param {{path: string[]}} props */
export function View({ path }) {
  const name = path[0] ?? "";
  const [length, setLength] = useState(PAGE);
  const [goingTo, setGoingTo] = useState(/** @type {Revision | null} */ (null));
  const tables = useTables();
  const rollouts = useRollouts(name, 100).value;
  const { value, problem } = useReading(
    async (abort) => {
      /** @type {Revision[]} */
      const all = [];
      let before = null;
      do {
        const page = await get(`/fleet/tables/${encodeURIComponent(name)}/revisions`, { limit: Math.min(50, length), before }, abort);
        all.push(...page.revisions);
        before = page.next;
      } while (before !== null && all.length < length);
      return { revisions: all, hasMore: before !== null };
    },
    [name, length],
    (type, data) => type === "table" && data.table === name,
  );
  const table = tables.value?.find((each) => each.table === name) ?? null;
  if (value === null || tables.value === null)
    return html`<h1>Table ${name}</h1>${problem || tables.problem ? html`<${ProblemBox} error=${problem ?? tables.problem} />` : html`<${Loading} what="the table" />`}`;
  const { revisions } = value;
  return html`
    <div class="head">
      <h1>Table ${name}</h1>
      ${table?.rollout && html`<p>its rollout <a href=${link(["rollouts", table.rollout])}>${table.rollout}</a> has not ended</p>`}
    </div>
    ${problem instanceof Problem && html`<${ProblemBox} error=${problem} />`}
    ${table === null && html`<p class="note warn"><${Icon} name="warn" />It was taken out of the fleet. Nodes keep what they hold; this is its past.</p>`}
    ${table !== null && html`<section class="card" aria-labelledby="nodes"><h2 id="nodes">Its nodes</h2><${Nodes} table=${table} /></section>`}
    <section class="card" aria-labelledby="revisions">
      <header><h2 id="revisions">Revisions</h2><a href=${link(["history"], { table: name })}>Who did what</a></header>
      <ul class="revisions">
        ${revisions.map((each) => {
          const rollout = `${name}-${each.revision}`;
          return html`<${RevisionItem}
            key=${each.revision}
            revision=${each}
            table=${table}
            rollout=${rollout}
            phase=${rollouts?.find((one) => one.id === rollout)?.phase}
            isNewest=${each.revision === table?.revision}
            onGo=${() => setGoingTo(each)}
          />`;
        })}
      </ul>
      ${value.hasMore && html`<p class="end"><button type="button" onClick=${() => setLength(length * 3)}>Read older ones</button></p>`}
    </section>
    ${goingTo !== null && table !== null && html`<${GoBack} table=${table} revision=${goingTo} onClose=${() => setGoingTo(null)} />`}
  `;
}
