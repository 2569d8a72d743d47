// Rollouts: their list; and one of them, as it goes from wave to wave.

import { html } from "htm/preact";
import { get } from "../api.js";
import { clock, duration, plural } from "../format.js";
import { Ago, Icon, Loading, ProblemBox } from "../parts.js";
import { go, link } from "../route.js";
import { FAILED, labelTexts } from "./health.js";
import { Labels, PhaseBadge, RolloutRows, StateMark, phaseName } from "./marks.js";
import { useReading, useRollouts, useTables } from "./state.js";
import { Steps } from "./steps.js";
import { Waves, shownState } from "./waves.js";

/** @typedef {import("./types.d.ts").Revision} Revision */
/** @typedef {import("./types.d.ts").Rollout} Rollout */
/** @typedef {import("./types.d.ts").RolloutNode} RolloutNode */

const LISTED = 1000; // rollouts
const SHOWN = 20; // bad nodes, and away ones

/** What goes on, in a sentence. @param {{rollout: Rollout}} props */
function Now({ rollout }) {
  const wave = `wave ${rollout.wave + 1} of ${rollout.waves.length}`;
  /** @type {Record<import("./types.d.ts").Phase, string>} */
  const texts = {
    progressing: `${wave} is open`,
    paused: `no more nodes are opened; those that have the table keep it (${wave})`,
    halted: `a node has failed in ${wave}; somebody decides: resume goes on all the same, abort goes back`,
    rolling_back: "all nodes that have the table are set back now",
    complete: "its nodes hold the table",
    rolled_back: "its nodes have what they had before",
    rollback_failed: "some nodes could not be set back: see below",
  };
  return html`<p><${PhaseBadge} phase=${rollout.phase} /> ${texts[rollout.phase]} <span class="muted">since <${Ago} at=${rollout.since} /></span></p>`;
}

/** The nodes that have failed, each with its sentence. @param {{rollout: Rollout, nodes: RolloutNode[]}} props */
function BadNodes({ rollout, nodes }) {
  const bad = nodes.filter((each) => FAILED.has(each.state));
  const names = new Set(bad.map((each) => each.node));
  const all = [...bad, ...rollout.failures.filter((each) => !names.has(each.node))];
  if (all.length === 0) return null;
  return html`<section class="card" aria-labelledby="bad">
    <h2 id="bad" class="bad">${plural(all.length, "node has failed", "nodes have failed")}</h2>
    <ul class="sentences">
      ${all.slice(0, SHOWN).map(
        (each) => html`<li key=${each.node}>
          <a class="name" href=${link(["nodes", each.node])}>${each.node}</a> <${StateMark} state=${each.state} />
          <span>${each.detail || "it gives no reason"}${each.code && html` <code class="muted">${each.code}</code>`}</span>
        </li>`,
      )}
    </ul>
    ${all.length > SHOWN && html`<p class="muted">and ${plural(all.length - SHOWN, "node", "nodes")} more</p>`}
  </section>`;
}

/** @param {{rollout: Rollout, nodes: RolloutNode[]}} props */
function Away({ rollout, nodes }) {
  const away = nodes.filter((each) => !each.alive && !["back", "superseded"].includes(each.state));
  if (away.length === 0) return null;
  const hasPassed = away.some((each) => shownState(each, rollout) === "absent");
  return html`<p class="note warn">
    <${Icon} name="warn" />
    <span>
      ${plural(away.length, "node is", "nodes are")} away:
      ${away.slice(0, SHOWN).map((each, place) => html`${place ? ", " : " "}<a key=${each.node} href=${link(["nodes", each.node])}>${each.node}</a>`)}${away.length > SHOWN && " …"}.
      Away nodes count against those that may be unavailable.${hasPassed && " Those whose turn has passed get the table when they are back."}
    </span>
  </p>`;
}

/** How the rollout goes to its nodes. @param {{revision: Revision}} props */
export function StrategyFacts({ revision }) {
  const { strategy } = revision;
  const checks = strategy.checks.map((each) =>
    each.program !== null
      ? `program ${each.program} returns ${each.returned}`
      : `${each.metric}${each.at_least === null ? "" : ` from ${each.at_least}`}${each.at_most === null ? "" : ` up to ${each.at_most}`}`,
  );
  return html`<dl class="pairs">
    <dt>Nodes</dt><dd><${Labels} labels=${labelTexts(revision.selector.match)} /></dd>
    <dt>Range</dt><dd class="mono">${revision.range}</dd>
    <dt>Waves</dt><dd>${strategy.waves.join(", ")}</dd>
    <dt>At once</dt><dd>at most ${plural(strategy.max_unavailable, "node", "nodes")} changing or away</dd>
    <dt>Bake</dt><dd>${strategy.bake_seconds ? `${duration(strategy.bake_seconds, 2)} after each wave` : "no time"}</dd>
    <dt>Confirm</dt><dd>within ${duration(strategy.confirm_within, 2)}, or the node undoes it</dd>
    <dt>Deadline</dt><dd>${duration(strategy.deadline, 2)} for a node</dd>
    <dt>Failure</dt><dd>${strategy.on_failure === "rollback" ? "all go back" : "it halts"}</dd>
    ${checks.length > 0 && html`<dt>Checks</dt><dd>${checks.map((each) => html`<p key=${each}>${each}</p>`)}</dd>`}
  </dl>`;
}

/** @param {{rollout: Rollout}} props */
function Transitions({ rollout }) {
  return html`<ol class="history">
    ${[...rollout.history].reverse().map(
      (each, place) => html`<li key=${rollout.history.length - place}>
        <span><strong>${phaseName(each.phase)}</strong>, wave ${each.wave + 1} <span class="muted">by ${each.by}</span></span>
        ${each.reason && html`<span>${each.reason}</span>`}
        <time class="muted small" datetime=${each.at}>${clock(each.at)}</time>
      </li>`,
    )}
  </ol>`;
}

/** The table of a rollout's id, and its revision. @param {string} id @returns {[string, number]} */
function parts(id) {
  const dash = id.lastIndexOf("-");
  return [id.slice(0, dash), Number(id.slice(dash + 1))];
}

/** @param {{id: string}} props */
function Single({ id }) {
  const [table, number] = parts(id);
  const { value, problem } = useReading(
    async (abort) => {
      const path = `/fleet/rollouts/${encodeURIComponent(id)}`;
      const [rollout, page] = await Promise.all([get(path, {}, abort), get(`${path}/nodes`, { limit: 10_000 }, abort)]);
      return /** @type {{rollout: Rollout, nodes: RolloutNode[]}} */ ({ rollout, nodes: page.nodes });
    },
    [id],
    (type, data) => type === "presence" || data.table === table,
  );
  const revision = useReading(
    async (abort) => {
      const page = await get(`/fleet/tables/${encodeURIComponent(table)}/revisions`, { before: number + 1, limit: 1 }, abort);
      return /** @type {Revision | null} */ (page.revisions.find((/** @type {Revision} */ each) => each.revision === number) ?? null);
    },
    [id],
    () => false,
  ).value;
  if (value === null)
    return html`<h1>Rollout ${id}</h1>${problem ? html`<${ProblemBox} error=${problem} />` : html`<${Loading} what="the rollout" />`}`;
  const { rollout, nodes } = value;
  return html`
    <div class="head">
      <h1>Revision ${rollout.revision} of <a href=${link(["tables", rollout.table])}>${rollout.table}</a></h1>
      <p class="muted">started by ${rollout.by}${revision?.note && html`<q>${revision.note}</q>`}${revision && revision.same_as !== null && html` · has the content of revision ${revision.same_as}`}</p>
    </div>
    <${ProblemBox} error=${problem} />
    <section class="card now" aria-label="Phase">
      <div><${Now} rollout=${rollout} />${rollout.reason && html`<p class="sentence">${rollout.reason}</p>`}</div>
      <${Steps} rollout=${rollout} revision=${revision} />
    </section>
    <${BadNodes} rollout=${rollout} nodes=${nodes} />
    <${Away} rollout=${rollout} nodes=${nodes} />
    <div class="beside">
      <section class="card" aria-labelledby="waves"><h2 id="waves">Waves</h2><${Waves} rollout=${rollout} nodes=${nodes} /></section>
      <aside class="stack">
        <section class="card" aria-labelledby="steps"><h2 id="steps">What happened</h2><${Transitions} rollout=${rollout} /></section>
        ${revision && html`<section class="card" aria-labelledby="how"><h2 id="how">How it goes</h2><${StrategyFacts} revision=${revision} /></section>`}
      </aside>
    </div>
  `;
}

/** @param {{query: URLSearchParams}} props */
function List({ query }) {
  const table = query.get("table");
  const tables = useTables().value;
  const { value, problem } = useRollouts(table, LISTED);
  return html`<h1>Rollouts</h1>
    <section class="card" aria-label="Rollouts">
      <form class="filters" aria-label="Filters" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
        <label>
          <span>Table</span>
          <select name="table" value=${table ?? ""} onChange=${(/** @type {any} */ event) => go(link(["rollouts"], { table: event.target.value }), true)}>
            <option value="">all</option>
            ${(tables ?? []).map((each) => html`<option key=${each.table} value=${each.table} selected=${each.table === table}>${each.table}</option>`)}
          </select>
        </label>
      </form>
      <${ProblemBox} error=${problem} />
      ${value === null
        ? problem === null && html`<${Loading} what="the rollouts" />`
        : value.length === 0
          ? html`<p class="muted">No rollout is like that.</p>`
          : html`<${RolloutRows} rollouts=${value} />`}
    </section>`;
}

/** @param {{path: string[], query: URLSearchParams}} props */
export function View({ path, query }) {
  const [id] = path;
  return id === undefined ? html`<${List} query=${query} />` : html`<${Single} id=${id} />`;
}
