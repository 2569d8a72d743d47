// Small parts that several views share.

import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";
import { serverNow } from "./api.js";
import { colour } from "./colours.js";
import { clock, count, duration, programName } from "./format.js";
import { link } from "./route.js";
import { second, tell, tenSeconds } from "./session.js";

/** @typedef {import("./types.d.ts").ProgramRef} ProgramRef */

const PATHS = {
  check: "M3 8.500 6.500 12 13 4.500",
  clock: "M8 4.500V8l2.500 1.500M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0Z",
  lock: "M4 7.500h8v6H4zM5.500 7.500V5a2.500 2.500 0 0 1 5 0v2.500",
  warn: "M8 2.500 14.500 13.500h-13zM8 6.500v3.500M8 11.800v.1",
  cross: "m4 4 8 8m0-8-8 8",
  arrow: "M2.500 8h11m-4-4 4 4-4 4",
  undo: "M6 3 2.500 6.500 6 10M2.500 6.500h7a4 4 0 0 1 0 8H6",
  pause: "M5.500 3.500v9M10.500 3.500v9",
  play: "M5 3.200 12.500 8 5 12.800z",
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  fit: "M2.500 6V2.500H6M10 2.500h3.500V6M13.500 10v3.500H10M6 13.500H2.500V10",
};

/** @param {{name: keyof typeof PATHS}} props */
export const Icon = ({ name }) =>
  html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** A program, in its colour. @param {{program: {name: string | null, id: number | null} | null}} props */
export const ProgramChip = ({ program }) =>
  program === null
    ? html`<span class="chip empty">empty</span>`
    : html`<span class=${`chip ${colour(program)}`}>${programName(program)}</span>`;

/** How long ago something was. @param {{at: string}} props */
export function Ago({ at }) {
  tenSeconds.value;
  const seconds = (serverNow() - Date.parse(at)) / 1000;
  return html`<time datetime=${at} title=${clock(at)}>${seconds < 5 ? "just now" : `${duration(seconds)} ago`}</time>`;
}

/** The time that is left for a confirmation. @param {{by: string, from?: string | undefined}} props */
export function Countdown({ by, from }) {
  second.value;
  const left = Math.max(0, Math.ceil((Date.parse(by) - serverNow()) / 1000));
  const whole = from ? (Date.parse(by) - Date.parse(from)) / 1000 : 0;
  const bar = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => bar.current?.style.setProperty("--left", String(whole ? Math.min(1, left / whole) : 0)));
  return html`<span class="countdown" role="timer">
    <${Icon} name="clock" /><strong>${left < 100 ? `${left} s` : duration(left, 2)}</strong>
    ${whole > 0 && html`<span class="left" ref=${bar} aria-hidden="true"></span>`}
  </span>`;
}

/** What one entry had and has. @param {{before: ProgramRef | null, after: ProgramRef | null}} props */
export const Difference = ({ before, after }) =>
  html`<span class="difference">
    <${ProgramChip} program=${before} /><${Icon} name="arrow" /><span class="hidden">becomes</span>
    <${ProgramChip} program=${after} />
  </span>`;

const STATES = /** @type {Record<string, string>} */ ({
  applied: "quiet",
  confirmed: "ok",
  unconfirmed: "warn",
  reverted: "quiet",
  expired: "bad",
});

/** @param {{state: string}} props */
export const StateBadge = ({ state }) =>
  html`<span class=${`badge ${STATES[state] ?? "quiet"}`}>${state === "expired" ? "undone: expired" : state}</span>`;

/** A problem: what is wrong, and what to do. @param {{error: unknown}} props */
export function ProblemBox({ error }) {
  if (error === null || error === undefined) return null;
  const { title, message, facts } = /** @type {any} */ (error);
  return html`<div class="problem" role="alert">
    <${Icon} name="warn" />
    <div>
      <strong>${title ?? "Something went wrong"}</strong>
      <p>${message}</p>
      ${facts?.index !== undefined &&
      html`<p class="muted">
        Entry ${facts.index}${facts.program ? `, program ${facts.program}` : ""}${facts.put_back === true
          ? ": everything was put back"
          : ""}
      </p>`}
    </div>
  </div>`;
}

/**
 * A button that says why it cannot be pressed, instead of being absent.
 *
 * @param {{onPress: () => void, why?: string | null, kind?: string, label?: string, children?: unknown}} props
 *   `why`: the reason; null: it can be pressed.
 */
export function Action({ onPress, why = null, kind = "", label, children }) {
  return html`<button
    type="button"
    class=${kind}
    aria-disabled=${why !== null}
    aria-label=${label}
    title=${why}
    onClick=${() => (why === null ? onPress() : tell(`Not possible: ${why}.`))}
  >
    ${children}${why !== null && html`<span class="hidden"> (not possible: ${why})</span>`}
  </button>`;
}

/** A dialog above the page. @param {{title: string, onClose: () => void, children?: unknown}} props */
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    const opener = document.activeElement;
    dialog.current?.showModal();
    return () => opener instanceof HTMLElement && opener.focus();
  }, []);
  return html`<dialog ref=${dialog} aria-labelledby="dialog-title" onClose=${onClose}>
    <header>
      <h2 id="dialog-title">${title}</h2>
      <button type="button" class="plain" aria-label="Close" onClick=${onClose}><${Icon} name="cross" /></button>
    </header>
    ${children}
  </dialog>`;
}

/** How full a map is. @param {{used: number, size: number}} props */
export function Fill({ used, size }) {
  const bar = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => bar.current?.style.setProperty("--share", String(size ? used / size : 0)));
  return html`<span class="fill">
    <span class="bar" ref=${bar} aria-hidden="true"></span>
    <span>${count(used)} <span class="muted">of ${count(size)}</span></span>
  </span>`;
}

/** What a change did, in a line. @param {{change: import("./types.d.ts").Change, most?: number}} props */
export function Summary({ change, most = 2 }) {
  return html`<span class="summary">
    ${change.entries.slice(0, most).map(
      (each) => html`<span class="entry-change" key=${each.index}>
        <a href=${link(["maps", change.map], { entry: each.index })}>${each.index}</a>
        <${Difference} before=${each.before} after=${each.after} />
      </span>`,
    )}
    ${change.entry_count > most &&
    html`<span class="muted">and ${count(change.entry_count - most)} more</span>`}
    ${change.entry_count === 0 && html`<span class="muted">no entry</span>`}
  </span>`;
}

/** A view that waits for what it shows. @param {{what: string}} props */
export const Loading = ({ what }) => html`<p class="muted loading" role="status">Reading ${what} …</p>`;
