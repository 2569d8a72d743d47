// A rollout as waves of cells: each cell is a node, in the colour and with the sign of its state.

import { html } from "htm/preact";
import { useRef, useState } from "preact/hooks";
import { count, plural } from "../format.js";
import { link } from "../route.js";
import { FINISHED, STATES, StateMark, stateName } from "./marks.js";

/** @typedef {import("./types.d.ts").Rollout} Rollout */
/** @typedef {import("./types.d.ts").RolloutNode} RolloutNode */

const NAMED = 48; // up to so many nodes, cells show names

/** How a node is shown. One whose turn has passed while it was away is absent, and may have been asked meanwhile. @param {RolloutNode} node @param {Rollout} rollout */
export function shownState(node, rollout) {
  const hadItsTurn = node.wave < rollout.wave || FINISHED.has(rollout.phase);
  return !node.alive && hadItsTurn && ["waiting", "told"].includes(node.state) ? "absent" : node.state;
}

/** @param {{node: RolloutNode, state: string, hasName: boolean, isFirst: boolean}} props */
function Cell({ node, state, hasName, isFirst }) {
  const text = `${node.node}: ${stateName(state)}${node.alive ? "" : ", away"}${node.detail ? `: ${node.detail}` : ""}`;
  return html`<li>
    <a
      class=${`spot s-${state}${node.alive ? "" : " gone"}`}
      href=${link(["nodes", node.node])}
      aria-label=${text}
      data-text=${text}
      tabindex=${isFirst ? 0 : -1}
    >
      <i aria-hidden="true">${STATES[state]?.[1]}</i>${hasName && html`<span aria-hidden="true">${node.node}</span>`}
    </a>
  </li>`;
}

/** The cell that an arrow key leads to. @param {HTMLElement[]} all @param {HTMLElement} from @param {string} key */
function neighbour(all, from, key) {
  const place = all.indexOf(from);
  if (key === "ArrowRight") return all[place + 1];
  if (key === "ArrowLeft") return all[place - 1];
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  const box = from.getBoundingClientRect();
  const isUp = key === "ArrowUp";
  const beyond = all
    .map((cell) => ({ cell, box: cell.getBoundingClientRect() }))
    .filter((each) => (isUp ? each.box.bottom <= box.top : each.box.top >= box.bottom));
  if (beyond.length === 0) return undefined;
  const row = (isUp ? Math.max : Math.min)(...beyond.map((each) => each.box.top));
  const distance = (/** @type {DOMRect} */ other) => Math.abs(other.left - box.left);
  return beyond.filter((each) => each.box.top === row).sort((a, b) => distance(a.box) - distance(b.box))[0]?.cell;
}

/** What is said of a wave. @param {number} wave @param {Rollout} rollout */
function waveStage(wave, rollout) {
  if (rollout.phase === "complete" || wave < rollout.wave) return "done";
  if (wave > rollout.wave) return FINISHED.has(rollout.phase) || rollout.phase === "rolling_back" ? "never opened" : "to come";
  return rollout.phase === "progressing" ? "open" : ["paused", "halted"].includes(rollout.phase) ? `open, ${rollout.phase}` : "the last one opened";
}

/** @param {{rollout: Rollout, nodes: RolloutNode[]}} props */
export function Waves({ rollout, nodes }) {
  const picture = useRef(/** @type {HTMLElement | null} */ (null));
  const [text, setText] = useState("");
  const hasNames = nodes.length <= NAMED;
  const shown = nodes.map((node) => ({ node, state: shownState(node, rollout) }));
  const states = new Set(shown.map((each) => each.state));

  /** @param {any} event */
  const look = (event) => {
    const cell = event.target.closest(".spot");
    if (cell) setText(cell.dataset.text);
  };
  /** @param {any} event */
  function onKey(event) {
    const from = event.target.closest(".spot");
    if (!from || !/^(Arrow(Up|Down|Left|Right)|Home|End)$/.test(event.key)) return;
    event.preventDefault();
    const all = /** @type {HTMLElement[]} */ ([...(picture.current?.querySelectorAll(".spot") ?? [])]);
    const to = neighbour(all, from, event.key);
    if (!to) return;
    for (const each of all) each.tabIndex = each === to ? 0 : -1; // one stop for the tabulator, as in a grid
    to.focus();
  }

  return html`<div class=${hasNames ? "waves named" : "waves"} ref=${picture} onKeyDown=${onKey} onFocusIn=${look} onMouseOver=${look} onMouseLeave=${() => setText("")}>
    <ul class="legend" aria-label="What the cells mean">
      ${Object.keys(STATES)
        .filter((each) => states.has(each))
        .map(
          (each) => html`<li key=${each} title=${STATES[each]?.[2]}>
            <${StateMark} state=${each} /> <span class="muted">${count(shown.filter((one) => one.state === each).length)}</span>
          </li>`,
        )}
    </ul>
    ${rollout.waves.map((wave, number) => {
      const cells = shown.filter((each) => each.node.wave === number);
      const stage = waveStage(number, rollout);
      return html`<section key=${number} class=${stage.startsWith("open") ? "wave open" : "wave"} aria-labelledby=${`wave-${number}`}>
        <h3 id=${`wave-${number}`}>Wave ${number + 1} <span class="badge quiet">${plural(wave.size, "node", "nodes")}</span> <span>${stage}</span></h3>
        <ul class="spots">
          ${cells.map((each) => html`<${Cell} key=${each.node.node} node=${each.node} state=${each.state} hasName=${hasNames} isFirst=${each === shown[0]} />`)}
        </ul>
      </section>`;
    })}
    <p class="looked" aria-hidden="true">${text || "Each cell is a node: point at it, or go with the arrow keys."}</p>
  </div>`;
}
