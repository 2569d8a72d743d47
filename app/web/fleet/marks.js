// Small parts that the views of the fleet share: phases and states as badges, and bars of states.

import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";
import { plural } from "../format.js";
import { Ago } from "../parts.js";
import { link } from "../route.js";

/** @typedef {import("./types.d.ts").Phase} Phase */

/** @type {Record<Phase, [string, string]>} */
const PHASES = {
  progressing: ["under way", "go"],
  paused: ["paused", "warn"],
  halted: ["halted", "bad"],
  rolling_back: ["going back", "warn"],
  complete: ["complete", "ok"],
  rolled_back: ["went back", "bad"],
  rollback_failed: ["going back failed", "bad"],
};
export const FINISHED = new Set(["complete", "rolled_back", "rollback_failed"]);

/** @param {Phase} phase */
export const phaseName = (phase) => PHASES[phase][0];

/** @param {{phase: Phase}} props */
export const PhaseBadge = ({ phase }) => html`<span class=${`badge ${PHASES[phase][1]}`}>${PHASES[phase][0]}</span>`;

/**
 * How a node can be in a rollout: what it is called, the sign in its cell, and what it means. In the order of a legend.
 *
 * @type {Record<string, [string, string, string]>}
 */
export const STATES = {
  waiting: ["waiting", "", "its turn has not come"],
  absent: ["absent", "?", "it was away at its turn, and gets the table when it is back"],
  told: ["opened", "•", "it was asked, and has not answered yet"],
  unconfirmed: ["unconfirmed", "…", "it has the table, and checks it before it confirms"],
  applied: ["applied", "✓", "it has the table"],
  refused: ["refused", "×", "it does not take the table"],
  unhealthy: ["unhealthy", "!", "a check has failed"],
  reverted: ["reverted", "↺", "it has taken the table back by itself"],
  drifted: ["drifted", "≠", "somebody has changed it there by hand"],
  late: ["late", "⧖", "it has not answered before the deadline"],
  going_back: ["going back", "←", "it was asked to go back, and has not answered yet"],
  back: ["set back", "↩", "it has what it had before"],
  superseded: ["superseded", "»", "a later rollout has reached it"],
};

/** @param {string} state */
export const stateName = (state) => STATES[state]?.[0] ?? state;

/** @param {{state: string}} props */
export const StateMark = ({ state }) =>
  html`<span class=${`mark s-${state}`}><i aria-hidden="true">${STATES[state]?.[1]}</i>${stateName(state)}</span>`;

/** How a node is, as `stateOf` says it. @param {{state: string}} props */
export const NodeBadge = ({ state }) =>
  html`<span class=${`badge ${{ ready: "ok", changing: "go" }[state] ?? "bad"}`}>${state}</span>`;

/** Labels, each in a frame. @param {{labels: string[]}} props */
export const Labels = ({ labels }) =>
  html`<span class="labels">${labels.map((each) => html`<code key=${each}>${each}</code>`)}</span>`;

/** The states from what is done to what is to come. */
const BAR = ["applied", "unconfirmed", "told", "refused", "unhealthy", "reverted", "drifted", "going_back", "back", "superseded", "waiting"];

/** How many nodes are in which state, as a bar. @param {{states: Record<string, number>}} props */
export function StateBar({ states }) {
  const bar = useRef(/** @type {HTMLElement | null} */ (null));
  const shown = BAR.filter((each) => states[each]);
  useEffect(() => {
    for (const [place, part] of [...(bar.current?.children ?? [])].entries())
      if (part instanceof HTMLElement) part.style.flexGrow = String(states[shown[place] ?? ""] ?? 0);
  });
  const text = shown.map((each) => `${states[each]} ${stateName(each)}`).join(", ");
  return html`<span class="states" title=${text}>
    <span class="parts" ref=${bar} aria-hidden="true">${shown.map((each) => html`<i key=${each} class=${`s-${each}`}></i>`)}</span>
    <span class="hidden">${text}</span>
  </span>`;
}

/** A number of nodes that leads to them; quiet where there are none. @param {{count: number, kind: string, query: Record<string, string>}} props */
export const NodeCount = ({ count, kind, query }) =>
  count === 0
    ? html`<span class="muted">none</span>`
    : html`<a class=${`badge ${kind}`} href=${link(["nodes"], query)}>${plural(count, "node", "nodes")}</a>`;

/** Rollouts, a row for each. @param {{rollouts: import("./types.d.ts").RolloutSummary[]}} props */
export const RolloutRows = ({ rollouts }) =>
  html`<div class="scroll">
    <table class="rows folding">
      <thead><tr><th>Rollout</th><th>Phase</th><th>Since</th><th class="wide">Who</th><th>Why</th></tr></thead>
      <tbody>
        ${rollouts.map(
          (each) => html`<tr key=${each.id}>
            <td class="nowrap"><a href=${link(["rollouts", each.id])}>${each.id}</a></td>
            <td><${PhaseBadge} phase=${each.phase} /></td>
            <td class="nowrap"><${Ago} at=${each.since} /></td>
            <td class="wide muted">${each.by}</td>
            <td class="sentence">${each.reason}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
