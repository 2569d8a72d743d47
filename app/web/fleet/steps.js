// What a person can do to a rollout, each after a confirmation: pause, resume, abort.

import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { send } from "../api.js";
import { plural } from "../format.js";
import { Action, Dialog, Icon, ProblemBox } from "../parts.js";
import { tell } from "../session.js";
import { FINISHED, phaseName } from "./marks.js";
import { rolloutRefusal } from "./rights.js";

/** @typedef {import("./types.d.ts").Rollout} Rollout */
/** @typedef {"pause" | "resume" | "abort"} Step */

/** @type {Record<Step, {title: string, icon: string, phases: string[], done: string}>} */
const STEPS = {
  pause: { title: "Pause", icon: "pause", phases: ["progressing"], done: "is paused" },
  resume: { title: "Resume", icon: "play", phases: ["paused", "halted"], done: "goes on" },
  abort: { title: "Abort", icon: "undo", phases: ["progressing", "paused", "halted"], done: "is aborted: its nodes go back" },
};

/** Nodes that have got the table, or were asked to take it. @param {Rollout} rollout */
const opened = ({ states }) =>
  Object.entries(states).reduce((sum, [state, count]) => (["waiting", "superseded", "back"].includes(state) ? sum : sum + count), 0);

/** What a step does. @param {Step} step @param {Rollout} rollout */
function meaning(step, rollout) {
  const nodes = plural(opened(rollout), "node", "nodes");
  if (step === "pause") return `No more nodes are opened until somebody resumes it. What was given to ${nodes} so far stays there.`;
  if (step === "abort") return `${nodes} go back to what they had, all at once. An aborted rollout cannot go on.`;
  return rollout.phase === "halted"
    ? `It goes on where it has halted. ${rollout.reason ? `It has halted because: ${rollout.reason}` : ""}`
    : `It goes on with wave ${rollout.wave + 1} of ${rollout.waves.length}.`;
}

/** Why a step cannot be taken in this phase; null: it can. @param {Step} step @param {Rollout} rollout */
function phaseRefusal(step, { phase }) {
  if (STEPS[step].phases.includes(phase)) return null;
  return FINISHED.has(phase) ? `it has ended: ${phaseName(phase)}` : `it is ${phaseName(phase)}`;
}

/** @param {{step: Step, rollout: Rollout, onClose: () => void}} props */
function Confirmation({ step, rollout, onClose }) {
  const [note, setNote] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState(/** @type {unknown} */ (null));
  const { title, icon, done } = STEPS[step];

  async function take() {
    setBusy(true);
    try {
      await send("POST", `/fleet/rollouts/${rollout.id}/${step}`, { query: { note: note.trim() } });
      tell(`Rollout ${rollout.id} ${done}.`);
      onClose();
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  }
  return html`<${Dialog} title=${`${title} rollout ${rollout.id}`} onClose=${onClose}>
    <p>${meaning(step, rollout)}</p>
    <label>
      <span>Why, for the history</span>
      <input name="note" maxlength="1000" value=${note} onInput=${(/** @type {any} */ event) => setNote(event.target.value)} />
    </label>
    <${ProblemBox} error=${problem} />
    <div class="stack"><footer>
      <button type="button" onClick=${onClose}>Leave it</button>
      <${Action} kind="primary" why=${isBusy ? "it is under way" : phaseRefusal(step, rollout)} onPress=${() => void take()}>
        <${Icon} name=${icon} />${title}
      <//>
    </footer></div>
  <//>`;
}

/** The buttons. @param {{rollout: Rollout, revision: import("./types.d.ts").Revision | null}} props */
export function Steps({ rollout, revision }) {
  const [open, setOpen] = useState(/** @type {Step | null} */ (null));
  const why = rolloutRefusal(rollout.table, revision);
  const steps = /** @type {Step[]} */ (rollout.phase === "paused" || rollout.phase === "halted" ? ["resume", "abort"] : ["pause", "abort"]);
  return html`<span class="buttons">
    ${steps.map(
      (each) => html`<${Action} key=${each} why=${phaseRefusal(each, rollout) ?? why} onPress=${() => setOpen(each)}>
        <${Icon} name=${STEPS[each].icon} />${STEPS[each].title} …
      <//>`,
    )}
    ${open !== null && html`<${Confirmation} step=${open} rollout=${rollout} onClose=${() => setOpen(null)} />`}
  </span>`;
}
