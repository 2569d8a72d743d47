// All changes, newest first: filtered, endless, with their difference, and undone after a dry run.

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Problem, get } from "./api.js";
import { clock, count, plural } from "./format.js";
import { Action, Ago, Countdown, Difference, Icon, Loading, ProblemBox, StateBadge, Summary } from "./parts.js";
import { entryRefusal } from "./rights.js";
import { go, link } from "./route.js";
import { FIRST_ENTRIES, maps, onChange } from "./state.js";
import { Decide, RevertReview } from "./waiting.js";

/** @typedef {import("./types.d.ts").Change} Change */

const PAGE = 50;
const SHOWN = 100; // entries of one change
const KINDS = ["set", "clear", "replace", "update", "revert", "expire", "reconcile", "restore", "adopt"];
const STATES = ["applied", "unconfirmed", "confirmed", "reverted", "expired"];
const FILTERS = /** @type {const} */ (["map", "index", "actor", "kind", "state", "since", "until"]);

/** The filters of an address, as the query of a request. @param {URLSearchParams} query */
function wanted(query) {
  /** @type {Record<string, string | null>} */
  const found = {};
  for (const each of FILTERS) {
    const value = query.get(each);
    const isTime = each === "since" || each === "until";
    found[each] = value && isTime && !Number.isNaN(Date.parse(value)) ? new Date(value).toISOString() : value;
  }
  return found;
}

/** The list as far as it was read, and how to read on. @param {URLSearchParams} query */
function useChanges(query) {
  const [changes, setChanges] = useState(/** @type {Change[]} */ ([]));
  const [next, setNext] = useState(/** @type {number | null | undefined} */ (undefined)); // undefined: not read yet
  const [problem, setProblem] = useState(/** @type {unknown} */ (null));
  const reading = useRef(/** @type {AbortController | null} */ (null));
  const filters = query.toString();

  /** @param {number | null} before */
  async function read(before) {
    reading.current?.abort();
    const abort = (reading.current = new AbortController());
    try {
      const page = await get("/changes", { ...wanted(query), order: "desc", entries: FIRST_ENTRIES, limit: PAGE, before }, abort.signal);
      setChanges((all) => (before === null ? page.changes : [...all, ...page.changes]));
      setNext(page.next);
      setProblem(null);
    } catch (error) {
      if (!abort.signal.aborted) setProblem(error);
      if (!abort.signal.aborted && before === null) setNext(null);
    } finally {
      if (reading.current === abort) reading.current = null;
    }
  }

  useEffect(() => {
    setNext(undefined);
    setChanges([]);
    void read(null);
    let timer = 0;
    const stop = onChange((_, change) => {
      if (change) setChanges((all) => all.map((each) => (each.id === change.id ? change : each)));
      clearTimeout(timer);
      timer = setTimeout(refresh, 150); // several changes may come at once
    });
    return () => {
      clearTimeout(timer);
      stop();
      reading.current?.abort();
    };
  }, [filters]);

  /** Put what is new above what was read, and take over what has another state now. */
  async function refresh() {
    const page = await get("/changes", { ...wanted(query), order: "desc", entries: FIRST_ENTRIES, limit: PAGE }).catch(() => null);
    if (page === null) return;
    /** @type {Change[]} */
    const fresh = page.changes;
    const oldest = fresh.at(-1)?.id ?? Infinity;
    setChanges((all) => [...fresh, ...all.filter((each) => each.id < oldest && page.next !== null)]);
  }

  return { changes, next, problem, more: () => next !== null && next !== undefined && reading.current === null && void read(next) };
}

/** @param {{query: URLSearchParams}} props */
function Filters({ query }) {
  /** @param {string} name @param {string} value */
  function set(name, value) {
    const all = Object.fromEntries(FILTERS.map((each) => [each, query.get(each)]));
    go(link(["changes"], { ...all, [name]: value.trim() }), true);
  }
  /** @param {string} name */
  const field = (name) => ({
    name,
    value: query.get(name) ?? "",
    onChange: (/** @type {any} */ event) => set(name, event.target.value),
  });
  /** @param {string} name @param {string[]} options */
  const choice = (name, options) =>
    html`<select ...${field(name)}>
      <option value="">any</option>
      ${options.map((each) => html`<option key=${each} value=${each} selected=${each === query.get(name)}>${each}</option>`)}
    </select>`;
  const isFiltered = FILTERS.some((each) => query.get(each));
  return html`<form class="filters" aria-label="Filters" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
    <label><span>Map</span>${choice("map", (maps.value ?? []).map((each) => each.name))}</label>
    <label class="narrow"><span>Entry</span><input ...${field("index")} inputmode="numeric" pattern="[0-9]*" /></label>
    <label><span>Who</span><input ...${field("actor")} placeholder="token:deploy" spellcheck="false" /></label>
    <label><span>Kind</span>${choice("kind", KINDS)}</label>
    <label><span>State</span>${choice("state", STATES)}</label>
    <label><span>Since</span><input type="datetime-local" ...${field("since")} /></label>
    <label><span>Until</span><input type="datetime-local" ...${field("until")} /></label>
    ${isFiltered && html`<a class="clear" href=${link(["changes"])}>All changes</a>`}
  </form>`;
}

/** A change with all its entries. @param {{change: Change}} props `change`: as a list has it. */
function Details({ change }) {
  const [whole, setWhole] = useState(/** @type {Change | null} */ (null));
  const [problem, setProblem] = useState(/** @type {unknown} */ (null));
  const isWhole = change.entries.length === change.entry_count;
  useEffect(() => {
    if (!isWhole) get(`/changes/${change.id}`).then(setWhole, setProblem);
  }, [change.id, isWhole]);
  if (problem !== null) return html`<${ProblemBox} error=${problem} />`;
  if (!isWhole && whole === null) return html`<${Loading} what="its entries" />`;
  return html`<${WholeDetails} change=${isWhole ? change : { ...change, entries: whole?.entries }} />`;
}

/** @param {{change: Change}} props */
function WholeDetails({ change }) {
  const [isReviewed, setReviewed] = useState(false);
  const indexes = change.entries.map((each) => each.index);
  const canRevert = ["applied", "confirmed"].includes(change.state);
  const why = indexes.map((each) => entryRefusal(change.map, each)).find((each) => each !== null) ?? null;
  return html`<div class="details">
    <dl class="pairs">
      <dt>Made</dt><dd>${clock(change.at)} by ${change.actor}</dd>
      <dt>Request</dt><dd><code>${change.request_id}</code></dd>
      ${change.note && html`<dt>Why</dt><dd>${change.note}</dd>`}
      ${change.reverts !== null && html`<dt>Undoes</dt><dd><a href=${link(["changes"], { id: change.reverts })}>change ${change.reverts}</a></dd>`}
      ${change.confirmed_at && html`<dt>Confirmed</dt><dd>${clock(change.confirmed_at)} by ${change.confirmed_by}</dd>`}
    </dl>
    <div class="scroll">
      <table class="rows">
        <thead><tr><th class="tight">Entry</th><th>Difference</th></tr></thead>
        <tbody>
          ${change.entries.slice(0, SHOWN).map(
            (each) => html`<tr key=${each.index}>
              <td><a class="mono" href=${link(["maps", change.map], { entry: each.index })}>${each.index}</a></td>
              <td><${Difference} before=${each.before} after=${each.after} /></td>
            </tr>`,
          )}
        </tbody>
      </table>
      ${change.entries.length > SHOWN && html`<p class="muted">and ${plural(change.entries.length - SHOWN, "entry", "entries")} more</p>`}
    </div>
    ${change.state === "unconfirmed"
      ? html`<${Decide} id=${change.id} map=${change.map} entries=${indexes} />`
      : html`<span class="buttons">
          <${Action} why=${canRevert ? why : `it is ${change.state} already`} onPress=${() => setReviewed(true)}><${Icon} name="undo" />Revert …<//>
        </span>`}
    ${isReviewed && html`<${RevertReview} id=${change.id} map=${change.map} entries=${indexes} onClose=${() => setReviewed(false)} />`}
  </div>`;
}

/** @param {{change: Change, isOpen: boolean, onToggle: () => void}} props */
function ChangeItem({ change, isOpen, onToggle }) {
  return html`<li class="change">
    <div class="line">
      <button
        type="button"
        class="plain id"
        aria-expanded=${isOpen}
        aria-label=${`Change ${change.id}, ${isOpen ? "show less" : "show its details"}`}
        onClick=${onToggle}
      >
        ${change.id}
      </button>
      <span class="when"><${Ago} at=${change.at} /></span>
      <span class="kind">${change.kind} <a href=${link(["maps", change.map])}>${change.map}</a></span>
      <span class="what"><${Summary} change=${change} most=${FIRST_ENTRIES} />${change.note && html`<q>${change.note}</q>`}</span>
      <span class="who">${change.actor}</span>
      <span class="state">
        <${StateBadge} state=${change.state} />
        ${change.state === "unconfirmed" && change.confirm_by && html`<${Countdown} by=${change.confirm_by} />`}
      </span>
    </div>
    ${isOpen && html`<${Details} change=${change} />`}
  </li>`;
}

/** One change, which may be far down the list. @param {{id: string}} props */
function Single({ id }) {
  const [change, setChange] = useState(/** @type {Change | null} */ (null));
  const [problem, setProblem] = useState(/** @type {unknown} */ (null));
  useEffect(() => {
    const read = () => get(`/changes/${encodeURIComponent(id)}`).then(setChange, setProblem);
    setChange(null);
    setProblem(null);
    void read();
    return onChange((_, other) => {
      if (other === null || String(other.id) === id || String(other.reverts) === id) void read();
    });
  }, [id]);
  return html`<section class="card">
    <header><h2>Change ${id}</h2><a href=${link(["changes"])}>All changes</a></header>
    <${ProblemBox} error=${problem} />
    ${change ? html`<ul class="changes"><${ChangeItem} change=${change} isOpen=${true} onToggle=${() => go(link(["changes"]))} /></ul>` : problem === null && html`<${Loading} what="the change" />`}
  </section>`;
}

/** @param {{query: URLSearchParams}} props */
function List({ query }) {
  const { changes, next, problem, more } = useChanges(query);
  const [open, setOpen] = useState(/** @type {ReadonlySet<number>} */ (new Set()));
  const end = useRef(/** @type {HTMLElement | null} */ (null));
  const readOn = useRef(more);
  readOn.current = more;
  useEffect(() => {
    const observer = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && readOn.current(), { rootMargin: "400px" });
    if (end.current) observer.observe(end.current);
    return () => observer.disconnect();
  }, [next]);

  /** @param {number} id */
  function toggle(id) {
    const now = new Set(open);
    if (!now.delete(id)) now.add(id);
    setOpen(now);
  }
  return html`<section class="card" aria-label="Changes">
    <${Filters} query=${query} />
    ${problem instanceof Problem && html`<${ProblemBox} error=${problem} />`}
    ${changes.length > 0 &&
    html`<ul class="changes">
      ${changes.map((each) => html`<${ChangeItem} key=${each.id} change=${each} isOpen=${open.has(each.id)} onToggle=${() => toggle(each.id)} />`)}
    </ul>`}
    ${next === undefined && html`<${Loading} what="the changes" />`}
    ${next === null &&
    problem === null &&
    html`<p class="muted end">${changes.length === 0 ? "No change is like that." : `That is all: ${count(changes.length)}. Older ones may have left the journal.`}</p>`}
    ${typeof next === "number" && html`<p ref=${end} class="end"><button type="button" onClick=${more}>Read older ones</button></p>`}
  </section>`;
}

/** @param {{query: URLSearchParams}} props */
export function View({ query }) {
  const id = query.get("id");
  return html`<h1>Changes</h1>
    ${id !== null ? html`<${Single} id=${id} />` : html`<${List} query=${query} />`}`;
}
