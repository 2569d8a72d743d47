// One table: its entries as a grid, one entry's panel, and edits that are collected, checked and applied as one change.

import { html } from "htm/preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Problem, get } from "./api.js";
import { Callers } from "./callers.js";
import { draftOf, edit, forget } from "./draft.js";
import { clock, count, plural, programName, ranges } from "./format.js";
import { Grid } from "./grid.js";
import { Action, Ago, Countdown, Difference, Icon, Loading, ProblemBox, ProgramChip, StateBadge } from "./parts.js";
import { Review } from "./review.js";
import { beyond, entryRefusal, isHidden, visibleCount } from "./rights.js";
import { go, link } from "./route.js";
import { index as service, refusal } from "./session.js";
import { maps, onChange, programs } from "./state.js";
import { CHUNK, TableData } from "./table-data.js";
import { Decide } from "./waiting.js";

/** @typedef {import("./types.d.ts").HeldMap} HeldMap */
/** @typedef {import("./types.d.ts").Target} Target */

const HISTORY = 8;
const SETTLE_MS = 120; // of the cursor, before its entry's history is asked for
const RUNS_MS = 2000;
const MOST_SELECTED = 4096;

/** @param {{map: HeldMap}} props */
function Head({ map }) {
  const [used, size] = [count(map.used ?? 0), map.max_entries ?? 0];
  const visible = visibleCount(size);
  return html`<header class="head">
    <h1>${map.name}</h1>
    <p class="muted">
      ${[
        map.state === "held" && `${used} of ${count(visible)} entries used${visible < size ? ` that you may see, of ${count(size)}` : ""}`,
        map.owner ? `${map.owner.program_type} programs` : "programs of any type",
        map.id !== null && `map ${map.id}`,
        map.pins[0] ?? "pinned nowhere",
        map.frozen && "frozen",
        map.protected.length > 0 && `protected: ${map.protected.join(", ")}`,
      ]
        .filter(Boolean)
        .join(" · ")}
    </p>
  </header>`;
}

/** Entries that are not as journalled, and how that ends. @param {{map: HeldMap}} props */
function Drift({ map }) {
  const [to, setTo] = useState(/** @type {"journal" | "kernel" | null} */ (null));
  if (map.drift.length === 0) return null;
  const why = refusal("admin");
  return html`<section class="card drift" aria-labelledby="drift">
    <header>
      <h2 id="drift"><${Icon} name="warn" /> ${plural(map.drift.length, "entry is", "entries are")} not as journalled</h2>
      <span class="buttons">
        <${Action} why=${why} onPress=${() => setTo("journal")}>Put back what is journalled<//>
        <${Action} why=${why} onPress=${() => setTo("kernel")}>Accept what is there<//>
      </span>
    </header>
    <ul class="inline">
      ${map.drift.slice(0, 6).map(
        (each) => html`<li key=${each.index} class="entry-change">
          <a href=${link(["maps", map.name], { entry: each.index })}>${each.index}</a> journalled
          <${ProgramChip} program=${each.journal} /> but holds <${ProgramChip} program=${each.kernel} />
        </li>`,
      )}
      ${map.drift.length > 6 && html`<li class="muted">and ${count(map.drift.length - 6)} more</li>`}
    </ul>
    ${to !== null &&
    html`<${Review}
      title=${to === "journal" ? "Put back what is journalled" : "Accept what is there"}
      verb=${to === "journal" ? "Put it back" : "Accept it"}
      request=${{ method: "POST", path: `/maps/${map.name}/reconcile`, json: { to } }}
      why=${why}
      canWait=${to === "journal"}
      onDone=${() => setTo(null)}
      onClose=${() => setTo(null)}
    />`}
  </section>`;
}

/** Which colour is which program, among the entries that were read. @param {{data: TableData}} props */
function Legend({ data }) {
  data.revision.value;
  /** @type {Map<string, {program: import("./types.d.ts").EntryProgram, count: number}>} */
  const found = new Map();
  for (const program of data.entries.values()) {
    const key = programName(program);
    const known = found.get(key);
    if (known) known.count += 1;
    else found.set(key, { program, count: 1 });
  }
  const most = [...found.values()].sort((a, b) => b.count - a.count);
  return html`<ul class="inline legend">
    ${most.slice(0, 12).map(
      ({ program, count: uses }) => html`<li key=${program.id}><${ProgramChip} program=${program} /> <span class="muted">${count(uses)}</span></li>`,
    )}
    ${most.length > 12 && html`<li class="muted">and ${most.length - 12} more</li>`}
    ${data.known.size * CHUNK < data.size && html`<li class="muted small">among the ${count(data.known.size * CHUNK)} entries read so far</li>`}
  </ul>`;
}

/** How often a program runs. @param {{name: string}} props */
function Runs({ name }) {
  const [rate, setRate] = useState(/** @type {{total: number, each: number | null} | null} */ (null));
  useEffect(() => {
    let before = /** @type {{count: number, at: number} | null} */ (null);
    const read = () =>
      get(`/programs/${name}`, { uses: 0 }).then(
        ({ run_count: total }) => {
          const now = { count: total ?? 0, at: performance.now() };
          setRate({ total: now.count, each: before && ((now.count - before.count) * 1000) / (now.at - before.at) });
          before = now;
        },
        (error) => error instanceof Problem || Promise.reject(error),
      );
    setRate(null);
    void read();
    const timer = setInterval(() => document.hidden || void read(), RUNS_MS);
    return () => clearInterval(timer);
  }, [name]);
  if (rate === null) return html`<span class="muted">…</span>`;
  if (rate.total === 0)
    return html`<span class="muted" title="The kernel counts runs only while the sysctl kernel.bpf_stats_enabled is 1, and only those that are no tail call.">none counted</span>`;
  return html`${count(rate.total)}${rate.each !== null && html` <span class="muted">(${count(Math.round(rate.each))} a second)</span>`}`;
}

/** @param {{data: TableData, index: number}} props */
function ProgramFacts({ data, index }) {
  data.revision.value;
  if (!data.isKnown(index)) return html`<${Loading} what="the entry" />`;
  const program = data.entries.get(index);
  if (!program) return html`<p class="muted">The entry is empty: a jump to it falls through.</p>`;
  return html`<dl class="pairs">
    <dt>Program</dt><dd><${ProgramChip} program=${program} /></dd>
    ${program.name === null && html`<dt></dt><dd class="muted">not held by the service: another tool put it there</dd>`}
    <dt>Type</dt><dd>${program.type ?? "unknown"}</dd>
    <dt>Tag</dt><dd><code>${program.tag ?? "unknown"}</code></dd>
    <dt>Id</dt><dd><code>${program.id}</code>${program.kernel_name && html` <span class="muted">in the kernel: ${program.kernel_name}</span>`}</dd>
    ${program.loaded_at && html`<dt>Loaded</dt><dd title=${clock(program.loaded_at)}><${Ago} at=${program.loaded_at} /></dd>`}
    ${program.name !== null && html`<dt>Runs</dt><dd><${Runs} name=${program.name} /></dd>`}
  </dl>`;
}

/** Who changed this entry. @param {{map: string, index: number}} props */
function History({ map, index }) {
  const [found, setFound] = useState(/** @type {import("./types.d.ts").Change[] | null} */ (null));
  useEffect(() => {
    const abort = new AbortController();
    const read = () =>
      get("/changes", { map, index, order: "desc", limit: HISTORY, entries: 1 }, abort.signal).then(
        (page) => setFound(page.changes),
        (error) => error instanceof Problem || abort.signal.aborted || Promise.reject(error),
      );
    const timer = setTimeout(read, SETTLE_MS);
    const stop = onChange((name, change) => {
      if (name === null || (name === map && (change === null || change.entries.some((each) => each.index === index)))) void read();
    });
    return () => {
      clearTimeout(timer);
      stop();
      abort.abort();
    };
  }, [map, index]);
  if (found === null) return html`<${Loading} what="its history" />`;
  if (found.length === 0) return html`<p class="muted">No change of it is in the journal.</p>`;
  return html`<ol class="history">
    ${found.map((change) => {
      const one = change.entries.find((each) => each.index === index);
      return html`<li key=${change.id}>
        <span><a href=${link(["changes"], { id: change.id })}>${change.id}</a> <${Ago} at=${change.at} /> <${StateBadge} state=${change.state} /></span>
        ${one && html`<${Difference} before=${one.before} after=${one.after} />`}
        <span class="muted">${change.kind} by ${change.actor}</span>
        ${change.note && html`<q>${change.note}</q>`}
      </li>`;
    })}
  </ol>`;
}

/** Collects edits for the entries that are selected. @param {{map: HeldMap, indexes: number[]}} props */
function Edit({ map, indexes }) {
  const [other, setOther] = useState("");
  const why = indexes.map((each) => entryRefusal(map.name, each)).find((each) => each !== null) ?? null;
  const draft = draftOf(map.name);
  const edits = indexes.filter((each) => draft.has(each));
  const target = edits.length === indexes.length ? draft.get(/** @type {number} */ (edits[0])) : undefined;
  const held = (programs.value ?? []).filter((each) => each.state === "held");
  const whyOther = why ?? refusal("admin") ?? (service.value?.caller?.programs ? "your token is bounded to programs" : null);

  /** @param {Target} to */
  const collect = (to) => why === null && edit(map.name, indexes, to);
  if (why !== null) return html`<p class="note"><${Icon} name="lock" /><span>You may not change ${indexes.length === 1 ? "it" : "them"}: ${why}.</span></p>`;
  return html`<div class="targets" role="group" aria-label="Point to">
    ${held.map(
      (each) => html`<button
        key=${each.name}
        type="button"
        class="target"
        aria-pressed=${target?.ref === each.name}
        onClick=${() => collect({ ref: each.name, label: each.name })}
      ><${ProgramChip} program=${each} /></button>`,
    )}
    <button type="button" class="target" aria-pressed=${target === null} onClick=${() => collect(null)}><${ProgramChip} program=${null} /></button>
    ${whyOther === null &&
    html`<form
      class="by-id"
      onSubmit=${(/** @type {Event} */ event) => {
        event.preventDefault();
        const text = other.trim();
        if (/^\d+$/.test(text)) collect({ ref: { id: Number(text) }, label: `#${text}` });
        else if (text.startsWith("/")) collect({ ref: { pinned: text }, label: text });
      }}
    >
      <input aria-label="Another program, by its id or its pin" placeholder="or an id, or a pin: /sys/fs/bpf/…" value=${other} pattern="[0-9]+|/.+" required onInput=${(/** @type {any} */ e) => setOther(e.target.value)} />
      <button>Use</button>
    </form>`}
    ${edits.length > 0 && html`<button type="button" class="plain" onClick=${() => forget(map.name, edits)}>Leave as it is</button>`}
  </div>`;
}

/** @param {{map: HeldMap, data: TableData, first: number, last: number, cursor: number}} props */
function Panel({ map, data, first, last, cursor }) {
  if (first !== last) {
    const indexes = Array.from({ length: last - first + 1 }, (_, place) => first + place);
    return html`<h2>Entries ${first}–${last}</h2>
      <p class="muted">${plural(indexes.length, "entry", "entries")} selected</p>
      <h3>Point them to</h3>
      ${indexes.length > MOST_SELECTED
        ? html`<p class="note warn">At most ${count(MOST_SELECTED)} can be edited at once.</p>`
        : html`<${Edit} map=${map} indexes=${indexes} />`}`;
  }
  const waiting = map.waiting.find((each) => each.entries.includes(cursor));
  const drift = map.drift.find((each) => each.index === cursor);
  const title = html`<h2>Entry ${cursor} <span class="muted mono">0x${cursor.toString(16)}</span></h2>`;
  if (isHidden(cursor)) return html`${title}<p class="note"><${Icon} name="lock" /><span>You may not see it: ${beyond()}.</span></p>`;
  return html`${title}
    <${ProgramFacts} data=${data} index=${cursor} />
    ${waiting &&
    html`<div class="note warn stack">
      <span><${Countdown} by=${waiting.confirm_by} /> until change ${waiting.change} is undone</span>
      <${Decide} id=${waiting.change} map=${map.name} entries=${waiting.entries} />
    </div>`}
    ${drift &&
    html`<p class="note bad"><${Icon} name="warn" /><span>Drift: journalled is <${ProgramChip} program=${drift.journal} />, and it holds <${ProgramChip} program=${drift.kernel} />.</span></p>`}
    <h3>Point it to</h3>
    <${Edit} map=${map} indexes=${[cursor]} />
    <h3>History</h3>
    <${History} map=${map.name} index=${cursor} />
    <h3>Who can jump to it</h3>
    <${Callers} map=${map.name} index=${cursor} />`;
}

/** The edits that are collected. @param {{map: HeldMap, data: TableData}} props */
function DraftBar({ map, data }) {
  const [isOpen, setOpen] = useState(false);
  const draft = draftOf(map.name);
  data.revision.value;
  if (draft.size === 0) return null;
  const indexes = [...draft.keys()].sort((a, b) => a - b);
  const entries = indexes.map((index) => ({ index, program: draft.get(index)?.ref ?? null }));
  const why = indexes.map((each) => entryRefusal(map.name, each)).find((each) => each !== null) ?? null;
  return html`<section class="draft" aria-label="Edits">
    <strong>${plural(draft.size, "edit", "edits")}</strong>
    <span class="muted">of ${ranges(indexes, 6)}, not applied yet</span>
    <span class="buttons">
      <button type="button" onClick=${() => forget(map.name, indexes)}>Discard</button>
      <button type="button" class="primary" onClick=${() => setOpen(true)}>Review …</button>
    </span>
    ${isOpen &&
    html`<${Review}
      title=${`Change ${plural(draft.size, "entry", "entries")} of ${map.name}`}
      verb="Apply as one change"
      request=${{ method: "PATCH", path: `/maps/${map.name}/entries`, json: { entries } }}
      guard=${`/maps/${map.name}/entries`}
      why=${why}
      onDone=${() => {
        setOpen(false);
        forget(map.name, indexes);
      }}
      onClose=${() => setOpen(false)}
    />`}
  </section>`;
}

/** @param {{map: HeldMap, query: URLSearchParams}} props */
function Table({ map, query }) {
  const size = map.max_entries ?? 0;
  const data = useMemo(() => new TableData(map.name, size), [map.name, size]);
  useEffect(() => () => data.stop(), [data]);
  const asked = Math.min(size - 1, Math.max(0, Number.parseInt(query.get("entry") ?? "0", 10) || 0));
  const [anchor, setAnchor] = useState(asked);
  const [cursor, setCursor] = useState(asked);
  const [jump, setJump] = useState("");
  const panel = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    if (query.has("entry") && asked !== cursor) {
      setAnchor(asked);
      setCursor(asked);
    }
  }, [asked]);
  const first = Math.min(anchor, cursor);
  const last = Math.max(anchor, cursor);

  /** @param {number} to @param {boolean} extend */
  function move(to, extend) {
    setCursor(to);
    if (!extend) setAnchor(to);
    go(link(["maps", map.name], { entry: to }), true);
  }

  /** @param {Event} event */
  function goTo(event) {
    event.preventDefault();
    const found = /^\s*(0x[0-9a-f]+|\d+)\s*(?:[-–]\s*(0x[0-9a-f]+|\d+)\s*)?$/i.exec(jump);
    if (!found) return;
    const [from, to] = [Number(found[1]), Number(found[2] ?? found[1])].map((each) => Math.min(each, size - 1));
    move(/** @type {number} */ (to), false);
    setAnchor(/** @type {number} */ (from));
  }

  const marks = {
    waiting: new Set(map.waiting.flatMap((each) => each.entries)),
    drift: new Set(map.drift.map((each) => each.index)),
    isHidden,
    isLocked: (/** @type {number} */ index) => entryRefusal(map.name, index) !== null && entryRefusal(map.name, null) === null,
    draft: draftOf(map.name),
  };
  const general = entryRefusal(map.name, null);
  return html`<${Drift} map=${map} />
    ${general !== null && html`<p class="note"><${Icon} name="lock" /><span>You can look and change nothing here: ${general}.</span></p>`}
    ${map.warnings.map((each) => html`<p key=${each} class="note warn"><${Icon} name="warn" /><span>${each}</span></p>`)}
    <div class="table-layout">
      <section class="card" aria-label="Entries">
        <div class="tools">
          <${Legend} data=${data} />
          <form onSubmit=${goTo}>
            <input class="go" aria-label="Go to an entry, or select a range" placeholder="Entry, or 8-15" value=${jump} onInput=${(/** @type {any} */ e) => setJump(e.target.value)} />
            <button>Go</button>
          </form>
        </div>
        <${ProblemBox} error=${data.problem.value} />
        <${Grid}
          data=${data}
          marks=${marks}
          cursor=${cursor}
          first=${first}
          last=${last}
          onMove=${move}
          onOpen=${() => /** @type {HTMLElement | null} */ (panel.current?.querySelector("button, a, input"))?.focus()}
        />
        <p class="muted small">Arrows move, Shift selects, Enter goes to the panel.</p>
      </section>
      <aside class="card panel" ref=${panel} aria-label="The entry that is selected"><${Panel} map=${map} data=${data} first=${first} last=${last} cursor=${cursor} /></aside>
    </div>
    <${DraftBar} map=${map} data=${data} />`;
}

/** @param {{path: string[], query: URLSearchParams}} props */
export function View({ path, query }) {
  const name = path[0] ?? "";
  const map = maps.value?.find((each) => each.name === name);
  if (maps.value === null) return html`<${Loading} what="the map" />`;
  if (!map) return html`<h1>${name}</h1><p class="muted">No map is held under this name, or none that you may see. <a href="#/">To the overview</a></p>`;
  return html`<${Head} map=${map} />
    ${map.state === "unavailable"
      ? html`<p class="note bad"><${Icon} name="warn" /><span>Unavailable: ${map.reason}. The service tries again by itself.</span></p>`
      : html`<${Table} map=${map} query=${query} />`}`;
}
