// Programs: what they are, where they are used, and how old they are.

import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { count, clock, ranges } from "./format.js";
import { Ago, Icon, Loading, ProgramChip } from "./parts.js";
import { link } from "./route.js";
import { mayHaveChanged, onChange, programs } from "./state.js";

/** @typedef {import("./types.d.ts").Program} Program */

/** Where a program is used, by map. @param {{program: Program}} props */
function Uses({ program }) {
  /** @type {Map<string, number[]>} */
  const byMap = new Map();
  for (const { map, index } of program.used_by) {
    const known = byMap.get(map);
    if (known) known.push(index);
    else byMap.set(map, [index]);
  }
  if (byMap.size === 0) return html`<span class="muted">no entry</span>`;
  const more = program.use_count - program.used_by.length;
  return html`${[...byMap].map(
    ([map, indexes]) => html`<p key=${map}><a href=${link(["maps", map], { entry: indexes[0] })}>${map}</a> <span class="mono">${ranges(indexes.sort((a, b) => a - b))}</span></p>`,
  )}${more > 0 && html`<p class="muted">and ${count(more)} more</p>`}`;
}

/** @param {{program: Program}} props */
function Row({ program }) {
  return html`<tr>
    <td>
      <${ProgramChip} program=${program} />
      ${program.state === "unavailable" && html`<p class="note bad small"><${Icon} name="warn" />${program.reason}</p>`}
      ${program.warnings.length > 0 && html`<span class="warns"><${Icon} name="warn" /><span class="hidden">has a warning, told below</span></span>`}
      <p class="phone muted small">${program.type} <code>${program.tag}</code>, id ${program.id}${program.loaded_at && html`, loaded <${Ago} at=${program.loaded_at} />`}</p>
    </td>
    <td class="wide">${program.type ?? ""}</td>
    <td class="wide"><code>${program.tag ?? ""}</code></td>
    <td class="number wide">${program.id ?? ""}</td>
    <td class="nowrap wide">${program.loaded_at && html`<span title=${clock(program.loaded_at)}><${Ago} at=${program.loaded_at} /></span>`}</td>
    <td><${Uses} program=${program} /></td>
    <td class="number wide">${program.run_count ? count(program.run_count) : html`<span class="muted">not counted</span>`}</td>
    <td class="wide">${program.pins[0] ? html`<code>${program.pins[0]}</code>` : html`<span class="muted">pinned nowhere</span>`}</td>
    <td class="nowrap"><a href=${link(["packet"], { program: program.name })}>Run<span class="hidden"> ${program.name} on a packet</span></a></td>
  </tr>`;
}

/** What is wrong, once for all programs that it is said of. @param {{programs: Program[]}} props */
function Warnings({ programs: all }) {
  /** @type {Map<string, string[]>} */
  const found = new Map();
  for (const { name, warnings } of all) for (const each of warnings) found.set(each, [...(found.get(each) ?? []), name]);
  return [...found].map(
    ([warning, names]) => html`<p key=${warning} class="note warn"><${Icon} name="warn" /><span><strong>${names.join(", ")}</strong>: ${warning}</span></p>`,
  );
}

export function View() {
  const all = programs.value;
  useEffect(() => onChange((map) => map !== null && mayHaveChanged({ programs: true })), []); // where they are used
  return html`<h1>Programs</h1>
    <section class="card" aria-labelledby="held">
      <h2 id="held">Held programs</h2>
      ${all === null
        ? html`<${Loading} what="the programs" />`
        : all.length === 0
          ? html`<p class="muted">No program is held, or none that you may see.</p>`
          : html`<div class="scroll" tabindex="0" role="region" aria-label="Table of programs">
              <table class="rows">
                <thead>
                  <tr>
                    <th>Program</th><th class="wide">Type</th><th class="wide">Tag</th><th class="number wide">Id</th><th class="wide">Loaded</th><th>Used in</th>
                    <th class="number wide">Runs</th><th class="wide">Pin</th><th><span class="hidden">Test run</span></th>
                  </tr>
                </thead>
                <tbody>${all.map((each) => html`<${Row} key=${each.name} program=${each} />`)}</tbody>
              </table>
            </div>
            <${Warnings} programs=${all} />`}
    </section>`;
}
