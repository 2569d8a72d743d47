// What waits for a confirmation, above every view: whoever made a change is not to look for it.

import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Problem, get, send } from "./api.js";
import { Action, Countdown, Icon, Summary } from "./parts.js";
import { Review } from "./review.js";
import { entryRefusal } from "./rights.js";
import { link } from "./route.js";
import { tell, tellProblem } from "./session.js";
import { FIRST_ENTRIES, maps, recent, takeEvent } from "./state.js";

/** Let a change stand. @param {number} id */
async function confirm(id) {
  try {
    takeEvent("confirmed", await (await send("POST", `/changes/${id}/confirm`)).json());
    tell(`Change ${id} stands.`);
  } catch (error) {
    tellProblem(error);
  }
}

/** Why the caller may not decide on a change; null: it may. @param {string} map @param {number[]} entries */
function whyNot(map, entries) {
  for (const each of entries) {
    const why = entryRefusal(map, each);
    if (why !== null) return why;
  }
  return null;
}

/** The buttons to decide on a change that waits. @param {{id: number, map: string, entries: number[]}} props */
export function Decide({ id, map, entries }) {
  const [isReviewed, setReviewed] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const why = whyNot(map, entries);
  return html`<span class="buttons">
    <${Action}
      kind="primary"
      why=${isBusy ? "it is under way" : why}
      label=${`Confirm change ${id}`}
      onPress=${() => {
        setBusy(true);
        void confirm(id).finally(() => setBusy(false));
      }}
    >
      <${Icon} name="check" />Confirm
    <//>
    <${Action} why=${why} label=${`Undo change ${id}`} onPress=${() => setReviewed(true)}><${Icon} name="undo" />Undo<//>
    ${isReviewed && html`<${RevertReview} id=${id} map=${map} entries=${entries} onClose=${() => setReviewed(false)} />`}
  </span>`;
}

/** The dialog that undoes a change. @param {{id: number, map: string, entries: number[], onClose: () => void}} props */
export function RevertReview({ id, map, entries, onClose }) {
  const waits = maps.value?.some((each) => each.waiting.some((one) => one.change === id)) ?? false;
  return html`<${Review}
    title=${`Undo change ${id}`}
    verb="Undo it"
    request=${{ method: "POST", path: `/changes/${id}/revert` }}
    why=${whyNot(map, entries)}
    canWait=${!waits}
    onDone=${onClose}
    onClose=${onClose}
  />`;
}

/** A change that may be older than the list of recent ones. @param {number} id */
function useChange(id) {
  const known = recent.value?.find((each) => each.id === id);
  const [fetched, setFetched] = useState(/** @type {import("./types.d.ts").Change | null} */ (null));
  useEffect(() => {
    if (known) return;
    const query = { after: id - 1, before: id + 1, entries: FIRST_ENTRIES };
    get("/changes", query).then((page) => setFetched(page.changes[0] ?? null), (error) => error instanceof Problem || Promise.reject(error));
  }, [id, known === undefined]);
  return known ?? fetched;
}

/** @param {{id: number, map: string, by: string, entries: number[]}} props */
function WaitingChange({ id, map, by, entries }) {
  const change = useChange(id);
  return html`<li class="waiting">
    <${Countdown} by=${by} from=${change?.at} />
    <span class="what">
      <a href=${link(["changes"], { id })}>Change ${id}</a> of <a href=${link(["maps", map])}>${map}</a> waits for a confirmation
      ${change && html`<${Summary} change=${change} />`}
      ${change?.note && html`<q>${change.note}</q>`}
    </span>
    <${Decide} id=${id} map=${map} entries=${entries} />
  </li>`;
}

/** All changes that wait, the most urgent first. */
export function WaitingList() {
  const waiting = (maps.value ?? []).flatMap((map) => map.waiting.map((each) => ({ ...each, map: map.name })));
  if (waiting.length === 0) return null;
  waiting.sort((a, b) => (a.confirm_by < b.confirm_by ? -1 : 1));
  return html`<section aria-label="Changes that wait for a confirmation">
    <ul class="waiting-list">
      ${waiting.map(
        (each) => html`<${WaitingChange} key=${each.change} id=${each.change} map=${each.map} by=${each.confirm_by} entries=${each.entries} />`,
      )}
    </ul>
  </section>`;
}
