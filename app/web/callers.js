// Who can jump to an entry, as the graph tells it.

import { html } from "htm/preact";

/** @param {{map: string, index: number}} props */
export function Callers({ map, index }) {
  return html`<p class="muted">${map} ${index}</p>`;
}
