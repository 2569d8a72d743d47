// A change before it is made: its difference from a dry run, its note, and how long it has to be confirmed.

import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Problem, send } from "./api.js";
import { duration, plural } from "./format.js";
import { Action, Dialog, Difference, Icon, Loading, ProblemBox } from "./parts.js";
import { tell } from "./session.js";

/** @typedef {import("./types.d.ts").Applied} Applied */

export const PERIODS = [10, 30, 60, 300, 900, 3600];
export const PRESELECTED = 60; // seconds: who cuts off their own connection is connected again after that
const SHOWN = 200;

const MOVED_ON = new Problem(412, {
  title: "Somebody has changed the table",
  detail: "It is no longer as it was when this was checked, so nothing was written.",
});

/**
 * A request that changes entries. `dry_run`, `note` and `confirm_within` are added to it.
 *
 * @typedef {{method: string, path: string, json?: unknown, query?: Record<string, string | boolean>}} ChangeRequest
 */

/**
 * The dialog. It shows what a request would change, and sends it.
 *
 * @param {{title: string, verb: string, request: ChangeRequest, why: string | null, canWait?: boolean, guard?: string,
 *   onDone: (applied: Applied) => void, onClose: () => void}} props
 */
export function Review({ title, verb, request, why, canWait = true, guard, onDone, onClose }) {
  const [would, setWould] = useState(/** @type {Applied | null} */ (null));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [round, setRound] = useState(0);
  const [etag, setEtag] = useState("");
  const [force, setForce] = useState(false);
  const [note, setNote] = useState("");
  const [within, setWithin] = useState(canWait ? PRESELECTED : 0);
  const [busy, setBusy] = useState(false);
  const query = { ...request.query, ...(force ? { force: true } : {}) };

  useEffect(() => {
    const abort = new AbortController();
    setWould(null);
    setProblem(null);
    check(abort.signal).catch((error) => abort.signal.aborted || setProblem(error));
    return () => abort.abort();
  }, [force, round]);

  /** @param {AbortSignal} abort */
  async function check(abort) {
    if (guard) setEtag((await send("GET", guard, { query: { limit: 1 }, abort })).headers.get("ETag") ?? "");
    const dry = await send(request.method, request.path, { ...request, query: { ...query, dry_run: true }, abort });
    setWould(await dry.json());
  }

  async function apply() {
    setBusy(true);
    setProblem(null);
    try {
      const more = { note, confirm_within: within || null };
      const headers = etag ? { "If-Match": etag } : {};
      const response = await send(request.method, request.path, { ...request, headers, query: { ...query, ...more } });
      /** @type {Applied} */
      const applied = await response.json();
      const change = applied.change;
      if (change === null) tell("Nothing had to be changed.");
      else if (change.confirm_by) tell(`Change ${change.id} is made. It is undone in ${duration(within)} unless it is confirmed.`);
      else tell(`Change ${change.id} is made.`);
      onDone(applied);
    } catch (error) {
      setProblem(/** @type {Problem} */ (error));
      setBusy(false);
      if (error instanceof Problem && error.status === 412) setWould(null); // what was shown is no longer so
    }
  }

  const entries = would?.entries ?? [];
  const isSure = would?.fit === "tried" || entries.every((each) => each.after === null);
  // Asked again with force, these go through where the caller insists.
  const canForce = problem !== null && ["pin-moved", "change-conflict"].includes(problem.code) && !force;
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <${ProblemBox} error=${problem?.status === 412 ? MOVED_ON : problem} />
    ${canForce && html`<p><button type="button" onClick=${() => setForce(true)}>Check again with force</button></p>`}
    ${problem?.status === 412 &&
    html`<p><button type="button" onClick=${() => setRound(round + 1)}>Show the difference anew</button></p>`}
    ${would === null && problem === null && html`<${Loading} what="what would change" />`}
    ${would !== null &&
    html`<div class="scroll" tabindex="0" role="region" aria-label="What would change">
        <table class="rows">
          <thead>
            <tr><th class="tight">Entry</th><th>Difference</th></tr>
          </thead>
          <tbody>
            ${entries.slice(0, SHOWN).map(
              (each) => html`<tr key=${each.index}>
                <td class="mono">${each.index}</td>
                <td><${Difference} before=${each.before} after=${each.after} /></td>
              </tr>`,
            )}
          </tbody>
        </table>
        ${entries.length > SHOWN && html`<p class="muted">and ${plural(entries.length - SHOWN, "entry", "entries")} more</p>`}
        ${entries.length === 0 && html`<p class="muted">Nothing would be written: all is so already.</p>`}
      </div>
      <p class=${isSure ? "note ok" : "note warn"}>
        <${Icon} name=${isSure ? "check" : "warn"} />
        ${isSure
          ? entries.some((each) => each.after !== null)
            ? "The kernel accepted the programs in a scratch array: they fit."
            : "Entries are only cleared, so no program has to fit."
          : "Only the types could be compared: the kernel may still refuse the write."}
      </p>
      ${(would.warnings ?? []).map((each) => html`<p key=${each} class="note warn"><${Icon} name="warn" /><span>${each}</span></p>`)}`}
    <form
      class="stack"
      onSubmit=${(/** @type {Event} */ event) => {
        event.preventDefault();
        if (would !== null && why === null && !busy) void apply();
      }}
    >
      <label>
        <span>Why <span class="muted">(kept with the change)</span></span>
        <input name="note" maxlength="1000" autocomplete="off" value=${note} onInput=${(/** @type {any} */ e) => setNote(e.target.value)} />
      </label>
      ${canWait &&
      html`<label>
        <span>Undo it unless somebody confirms it</span>
        <select name="within" value=${within} onChange=${(/** @type {any} */ e) => setWithin(Number(e.target.value))}>
          ${PERIODS.map((each) => html`<option key=${each} value=${each} selected=${each === within}>within ${duration(each)}</option>`)}
          <option value="0" selected=${within === 0}>it stands at once</option>
        </select>
      </label>`}
      <footer>
        <button type="button" onClick=${onClose}>Cancel</button>
        <${Action}
          kind="primary"
          why=${why ?? (would === null ? "it is not checked yet" : entries.length === 0 ? "nothing would change" : busy ? "it is under way" : null)}
          onPress=${() => void apply()}
        >
          ${busy ? "Under way …" : verb}
        <//>
      </footer>
    </form>
  <//>`;
}
