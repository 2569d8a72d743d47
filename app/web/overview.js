// The node at a glance: ready or not and why, its maps, and what happened last.

import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Problem, get } from "./api.js";
import { colour } from "./colours.js";
import { bytes, count, duration, plural } from "./format.js";
import { Ago, Fill, Icon, Loading, StateBadge, Summary } from "./parts.js";
import { isHidden, visibleCount } from "./rights.js";
import { link } from "./route.js";
import { tellProblem, tenSeconds } from "./session.js";
import { loadProblem, loadRecent, maps, notReady, onChange, programs, recent, version } from "./state.js";

/** @typedef {import("./types.d.ts").HeldMap} HeldMap */

const STRIP = 64; // entries of a map that the overview draws
const LAST = 10;

function Readiness() {
  const reasons = notReady.value;
  if (reasons === null) return html`<${Loading} what="the state of the service" />`;
  return reasons.length === 0
    ? html`<p class="readiness ok"><${Icon} name="check" /><strong>Ready</strong> all maps and programs are open</p>`
    : html`<div class="readiness bad" role="alert">
        <p><${Icon} name="warn" /><strong>Not ready</strong></p>
        <ul>${reasons.map((each) => html`<li key=${each}>${each}</li>`)}</ul>
      </div>`;
}

function Facts() {
  tenSeconds.value;
  const now = version.value;
  if (now === null) return null;
  const keeper = { running: "running", failing: "failing: see above", none: "none: one process" }[now.keeper ?? "none"];
  const kernel = now.kernel === "memory" ? "in memory: nothing is real" : `Linux ${now.kernel_release}`;
  const facts = [
    ["Kernel", kernel, now.kernel === "memory"],
    ["Keeper", keeper, now.keeper === "failing"],
    ["Version", now.version, false],
    ["Up for", duration(now.uptime_seconds, 2), false],
    ["Maps", count(maps.value?.length ?? 0), false],
    ["Programs", count(programs.value?.length ?? 0), false],
  ];
  return html`<dl class="facts">
    ${facts.map(([name, value, isBad]) => html`<div key=${name}><dt>${name}</dt><dd class=${isBad ? "bad" : ""}>${value}</dd></div>`)}
  </dl>`;
}

/** The first entries of a map, each in the colour of its program. @param {{map: HeldMap}} props */
function Strip({ map }) {
  const size = Math.min(map.max_entries ?? 0, STRIP);
  const [entries, setEntries] = useState(/** @type {Map<number, import("./types.d.ts").EntryProgram> | null} */ (null));
  useEffect(() => {
    const read = () =>
      get(`/maps/${map.name}/entries`, { limit: size }).then(
        (page) => setEntries(new Map(page.entries.map((/** @type {any} */ each) => [each.index, each.program]))),
        (error) => error instanceof Problem || Promise.reject(error),
      );
    void read();
    return onChange((name) => (name === null || name === map.name) && void read());
  }, [map.name, size]);
  if (entries === null) return html`<span class="strip"></span>`;
  const cells = Array.from({ length: size }, (_, index) => entries.get(index) ?? null);
  return html`<span class="strip" aria-hidden="true">
    ${cells.map((program, index) => html`<i key=${index} class=${isHidden(index) ? "unknown" : program === null ? "empty" : colour(program)}></i>`)}
  </span>`;
}

/** @param {{map: HeldMap}} props */
function MapRow({ map }) {
  const warnings = map.state === "unavailable" ? [map.reason ?? "unavailable"] : map.warnings;
  return html`<tr>
    <td>
      <a class="name" href=${link(["maps", map.name])}>${map.name}</a>
      ${(map.drift.length > 0 || map.waiting.length > 0) &&
      html`<p class="phone">
        ${map.drift.length > 0 && html`<span class="badge bad">${plural(map.drift.length, "entry drifts", "entries drift")}</span> `}
        ${map.waiting.length > 0 && html`<span class="badge warn">${plural(map.waiting.length, "change waits", "changes wait")}</span>`}
      </p>`}
      ${warnings.map((each) => html`<p class="note warn small" key=${each}><${Icon} name="warn" /><span>${each}</span></p>`)}
    </td>
    <td>
      ${map.state === "held"
        ? html`<${Fill} used=${map.used ?? 0} size=${visibleCount(map.max_entries ?? 0)} /><${Strip} map=${map} />`
        : html`<span class="badge bad">unavailable</span>`}
    </td>
    <td class="wide">${map.owner ? map.owner.program_type : html`<span class="muted">any</span>`}</td>
    <td class="wide">
      ${map.drift.length
        ? html`<a class="badge bad" href=${link(["maps", map.name], { entry: map.drift[0]?.index })}>${plural(map.drift.length, "entry", "entries")}</a>`
        : html`<span class="muted">none</span>`}
    </td>
    <td class="wide">
      ${map.waiting.length ? html`<span class="badge warn">${plural(map.waiting.length, "change", "changes")}</span>` : html`<span class="muted">none</span>`}
    </td>
    <td class="number wide">${map.memlock === null ? "" : bytes(map.memlock)}</td>
    <td class="wide">${map.pins.length ? html`<code>${map.pins[0]}</code>` : html`<span class="muted">pinned nowhere</span>`}</td>
  </tr>`;
}

function Maps() {
  const all = maps.value;
  if (all === null) return html`<${Loading} what="the maps" />`;
  if (all.length === 0) return html`<p class="muted">No map is held, or none that you may see.</p>`;
  return html`<div class="scroll">
    <table class="rows maps">
      <thead>
        <tr>
          <th>Map</th><th>Entries</th><th class="wide">Programs</th><th class="wide">Drift</th><th class="wide">Waiting</th><th class="number wide">Memory</th><th class="wide">Pin</th>
        </tr>
      </thead>
      <tbody>${all.map((map) => html`<${MapRow} key=${map.name} map=${map} />`)}</tbody>
    </table>
  </div>`;
}

function LastChanges() {
  const all = recent.value;
  useEffect(() => {
    if (all === null) void loadRecent().catch(tellProblem);
  }, []);
  if (all === null) return html`<${Loading} what="the last changes" />`;
  if (all.length === 0) return html`<p class="muted">Nothing was changed yet. Open a table, choose an entry, and point it to a program.</p>`;
  return html`<div class="scroll">
    <table class="rows">
      <thead>
        <tr><th>Change</th><th>When</th><th class="wide">Map</th><th>What</th><th class="wide">State</th><th class="wide">Who</th></tr>
      </thead>
      <tbody>
        ${all.slice(0, LAST).map(
          (each) => html`<tr key=${each.id}>
            <td class="mono"><a href=${link(["changes"], { id: each.id })}>${each.id}</a></td>
            <td class="nowrap"><${Ago} at=${each.at} />${each.state !== "applied" && html`<p class="phone"><${StateBadge} state=${each.state} /></p>`}</td>
            <td class="wide"><a href=${link(["maps", each.map])}>${each.map}</a></td>
            <td><p class="phone"><a href=${link(["maps", each.map])}>${each.map}</a></p><${Summary} change=${each} />${each.note && html`<q>${each.note}</q>`}</td>
            <td class="wide"><${StateBadge} state=${each.state} /></td>
            <td class="wide muted">${each.actor}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

export function Overview() {
  return html`
    <h1 class="hidden">Overview</h1>
    ${loadProblem.value && html`<p class="note bad" role="alert">${loadProblem.value.title}: ${loadProblem.value.message}</p>`}
    <section class="card glance" aria-label="State"><${Readiness} /><${Facts} /></section>
    <section class="card" aria-labelledby="maps"><h2 id="maps">Maps</h2><${Maps} /></section>
    <section class="card" aria-labelledby="last">
      <header><h2 id="last">Last changes</h2><a href=${link(["changes"])}>All changes</a></header>
      <${LastChanges} />
    </section>
  `;
}
