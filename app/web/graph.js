// The jump graph: what is attached, through which arrays programs jump to which others, and what is wrong with it.

import { html } from "htm/preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { count, plural, ranges } from "./format.js";
import { components, isAbsent, nodeName, useGraph } from "./graph-data.js";
import { Icon, Loading, ProblemBox, ProgramChip } from "./parts.js";
import { go, link } from "./route.js";

/** @typedef {import("./types.d.ts").Graph} Graph */
/** @typedef {import("./types.d.ts").GraphProgram} GraphProgram */

const MOST_DRAWN = 100; // programs: a larger part is a list
const SHOWN = 8;

/** @type {Record<string, string>} */
const REASONS = {
  "no-caller": "no loaded program jumps through the array",
  "no-jump": "no program jumps there",
  "not-reached": "only programs do that are never reached themselves",
};

/** Finds programs and arrays by their ids. @param {Graph} graph */
function index(graph) {
  const programs = new Map(graph.programs.map((each) => [each.id, each]));
  const arrays = new Map(graph.arrays.map((each) => [each.id, each]));
  return {
    program: (/** @type {number} */ id) => {
      const found = programs.get(id);
      return { name: found?.name ?? null, id, kernel_name: found?.kernel_name ?? null };
    },
    array: (/** @type {number} */ id) => arrays.get(id),
  };
}

/** An array, as a link where it is held. @param {{array: import("./types.d.ts").GraphArray | undefined, entry?: number | undefined}} props */
function ArrayName({ array, entry }) {
  if (!array) return html`<span>an array that you may not see</span>`;
  return array.name === null ? html`<span>${nodeName(array)}</span>` : html`<a href=${link(["maps", array.name], { entry })}>${array.name}</a>`;
}

/** What is wrong, or near to it. @param {{graph: Graph}} props */
function Findings({ graph }) {
  const find = index(graph);
  const chain = graph.longest_chain;
  const nearLimit = chain !== null && (chain.exceeds_limit || chain.jumps >= chain.limit - 3);
  const unreached = graph.unreached.entries;
  return html`<ul class="findings">
    ${graph.empty_jumps.slice(0, SHOWN).map(
      (each) => html`<li key=${`${each.program}/${each.array}/${each.index}`} class="note bad">
        <${Icon} name="warn" />
        <span>
          <${ProgramChip} program=${find.program(each.program)} /> ${each.certain ? "jumps" : "may jump"} to entry ${each.index} of
          ${" "}<${ArrayName} array=${find.array(each.array)} entry=${each.reason === "empty" ? each.index : undefined} />, which
          ${each.reason === "empty" ? " is empty" : " does not exist"}: the jump falls through.
        </span>
      </li>`,
    )}
    ${graph.empty_jumps.length > SHOWN && html`<li class="muted">and ${graph.empty_jumps.length - SHOWN} more jumps that fall through</li>`}
    ${chain !== null &&
    html`<li class=${nearLimit ? "note bad" : "note"}>
      <${Icon} name=${nearLimit ? "warn" : "check"} />
      <span>
        The longest chain has ${plural(chain.jumps, "jump", "jumps")}; the kernel allows ${chain.limit}.
        ${chain.exceeds_limit ? " The last one falls through." : ""}${" "}
        ${chain.programs.slice(0, SHOWN).map((id, place) => html`${place > 0 && " → "}<${ProgramChip} program=${find.program(id)} />`)}
        ${chain.programs.length > SHOWN && " → …"}
      </span>
    </li>`}
    ${graph.cycles.map(
      (each) => html`<li key=${each.programs.join()} class="note warn">
        <${Icon} name="warn" />
        <span>
          ${each.programs.length === 1 ? "It" : "They"} ${each.certain ? "" : "may "}${each.programs.length === 1 ? `lead${each.certain ? "s" : ""} to itself` : "lead to each other"}, until the kernel ends the chain:
          ${" "}${each.programs.slice(0, SHOWN).map((id) => html`<${ProgramChip} program=${find.program(id)} /> `)}
        </span>
      </li>`,
    )}
    ${unreached.slice(0, SHOWN).map(
      (each) => html`<li key=${`${each.array}/${each.reason}`} class="note">
        <${Icon} name="warn" />
        <span>Never reached: ${each.count === 1 ? "entry" : `${count(each.count)} entries,`} ${ranges(each.indexes, 6)} of <${ArrayName} array=${find.array(each.array)} entry=${each.indexes[0]} />: ${REASONS[each.reason] ?? each.reason}.</span>
      </li>`,
    )}
    ${graph.unseen.map((each) => html`<li key=${each} class="note"><${Icon} name="warn" /><span>Not seen: ${each}</span></li>`)}
  </ul>`;
}

/** The same as a list, for eyes that do not see the picture and for what is too large for one. @param {{graph: Graph}} props */
function List({ graph }) {
  const find = index(graph);
  return html`<div class="scroll">
    <table class="rows">
      <thead><tr><th>Program</th><th>Type</th><th>Attached to</th><th>Jumps through</th><th>Is in</th></tr></thead>
      <tbody>
        ${graph.programs.map((each) => {
          const attached = graph.attachments.filter((one) => one.program === each.id);
          const jumps = graph.edges.filter((one) => one.program === each.id);
          const places = graph.arrays.flatMap((array) => {
            const indexes = (array.entries ?? []).filter((one) => one.program === each.id).map((one) => one.index);
            return indexes.length ? [{ array, indexes }] : [];
          });
          return html`<tr key=${each.id}>
            <td><${ProgramChip} program=${find.program(each.id)} /></td>
            <td>${each.type}</td>
            <td>${attached.length ? attached.map((one) => `${one.kind} ${one.where ?? ""}`).join(", ") : html`<span class="muted">nothing</span>`}</td>
            <td>
              ${jumps.map(
                (one) => html`<p key=${one.array}><${ArrayName} array=${find.array(one.array)} entry=${one.indexes?.[0]} /> <span class="mono">${one.indexes === null ? "any entry" : ranges(one.indexes, 6)}</span>${!one.certain && html` <span class="muted">perhaps</span>`}</p>`,
              )}
              ${jumps.length === 0 && html`<span class="muted">none</span>`}
            </td>
            <td>
              ${places.map(
                ({ array, indexes }) => html`<p key=${array.id}><${ArrayName} array=${array} entry=${indexes[0]} /> <span class="mono">${ranges(indexes, 6)}</span></p>`,
              )}
              ${places.length === 0 && html`<span class="muted">no array</span>`}
            </td>
          </tr>`;
        })}
      </tbody>
    </table>
  </div>`;
}

/** What a part is called. @param {Graph} graph */
function title(graph) {
  const held = graph.arrays.find((each) => each.name !== null) ?? graph.arrays[0];
  const first = held ?? graph.programs.find((each) => each.name !== null) ?? graph.programs[0];
  return `${first ? nodeName(first) : "nothing"} (${plural(graph.programs.length, "program", "programs")}, ${plural(graph.arrays.length, "array", "arrays")})`;
}

/** @param {{graph: Graph}} props */
function Picture({ graph }) {
  const [Drawing, setDrawing] = useState(/** @type {any} */ (null));
  useEffect(() => {
    // The layout is larger than all else, so it is loaded only here.
    void import("./drawing.js").then((found) => setDrawing(() => found.Drawing));
  }, []);
  return Drawing === null ? html`<${Loading} what="the picture" />` : html`<${Drawing} graph=${graph} />`;
}

/**
 * A part of the graph, with the longest chain in it: of everything, the service tells only the longest one.
 *
 * @param {{part: Graph}} props
 */
function Part({ part }) {
  const held = part.arrays.find((each) => each.name !== null)?.name ?? null;
  const isWanted = part.longest_chain === null && held !== null;
  const { graph } = useGraph(held, isWanted);
  const chain = isWanted ? (graph?.longest_chain ?? null) : part.longest_chain;
  const whole = useMemo(() => ({ ...part, longest_chain: chain }), [part, chain]);
  return html`<${Findings} graph=${whole} />
    ${part.programs.length <= MOST_DRAWN
      ? html`<section class="card" aria-label="Picture"><${Picture} graph=${whole} /></section>
          <details class="card"><summary>The same as a list</summary><${List} graph=${whole} /></details>`
      : html`<section class="card" aria-label="List">
          <p class="note">It has ${part.programs.length} programs, too many for a picture of use: here they are as a list.</p>
          <${List} graph=${whole} />
        </section>`}`;
}

/** @param {{query: URLSearchParams}} props */
export function View({ query }) {
  const { graph, problem } = useGraph(null);
  const parts = useMemo(
    () => (graph === null ? [] : components(graph)).filter((each) => each.arrays.length > 0 || each.programs.some((one) => one.name !== null)),
    [graph],
  );
  if (problem !== null && isAbsent(problem))
    return html`<h1>Graph</h1>
      <p class="note" role="status"><${Icon} name="warn" /><span>This service has no route <code>/graph</code> (404), so there is no graph to show. A newer version of jumptable has it.</span></p>`;
  if (problem !== null) return html`<h1>Graph</h1><${ProblemBox} error=${problem} />`;
  if (graph === null) return html`<h1>Graph</h1><${Loading} what="the graph" />`;
  const asked = query.get("map");
  const chosen = Math.max(0, asked === null ? Number(query.get("part") ?? 0) : parts.findIndex((each) => each.arrays.some((one) => one.name === asked)));
  const part = parts[chosen] ?? parts[0];
  if (!part) return html`<h1>Graph</h1><p class="muted">No program that you may see jumps anywhere.</p>`;
  return html`<header class="head">
      <h1>Graph</h1>
      ${parts.length > 1 &&
      html`<label class="part">
        <span class="hidden">Part</span>
        <select value=${chosen} onChange=${(/** @type {any} */ event) => go(link(["graph"], { part: event.target.value }), true)}>
          ${parts.map((each, number) => html`<option key=${number} value=${number} selected=${number === chosen}>${title(each)}</option>`)}
        </select>
      </label>`}
      <p class="muted">${plural(graph.programs.length, "program", "programs")} and ${plural(graph.arrays.length, "array", "arrays")} on this machine</p>
    </header>
    <${Part} key=${chosen} part=${part} />`;
}
