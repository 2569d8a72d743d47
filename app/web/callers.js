// Who can jump to an entry, as the graph tells it.

import { html } from "htm/preact";
import { isAbsent, useGraph } from "./graph-data.js";
import { Icon, Loading, ProblemBox, ProgramChip } from "./parts.js";
import { link } from "./route.js";

/** @param {{map: string, index: number}} props */
export function Callers({ map, index }) {
  const { graph, problem } = useGraph(map);
  if (problem !== null)
    return isAbsent(problem)
      ? html`<p class="muted">This service does not tell: it has no route <code>/graph</code>.</p>`
      : html`<${ProblemBox} error=${problem} />`;
  if (graph === null) return html`<${Loading} what="the graph" />`;
  const ids = new Set(graph.arrays.filter((each) => each.name === map).map((each) => each.id));
  const edges = graph.edges.filter((each) => ids.has(each.array) && (each.indexes === null || each.indexes.includes(index)));
  if (edges.length === 0) return html`<p class="muted">No loaded program jumps there.</p>`;
  const isEmpty = graph.arrays.some((each) => ids.has(each.id) && each.entries !== null && !each.entries.some((one) => one.index === index));
  const isMeant = edges.some((each) => each.indexes !== null);
  return html`<ul class="callers">
      ${edges.map((each) => {
        const program = graph.programs.find((one) => one.id === each.program);
        return html`<li key=${`${each.program}/${each.array}`}>
          ${program && html`<${ProgramChip} program=${{ name: program.name, id: program.id, kernel_name: program.kernel_name }} />`}
          <span class="muted">
            ${each.certain ? "jumps" : "may jump"} to ${each.indexes === null ? "any entry" : each.indexes.length === 1 ? "just this entry" : `one of ${each.indexes.length} entries`}
          </span>
        </li>`;
      })}
    </ul>
    ${isEmpty && isMeant && html`<p class="note bad"><${Icon} name="warn" /><span>It is empty: the jump falls through.</span></p>`}
    <a href=${link(["graph"], { map })}>Show the graph</a>`;
}

