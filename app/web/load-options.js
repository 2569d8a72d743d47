// How an object file is loaded: the fields for it, and the JSON that is made of them.

import { html } from "htm/preact";
import { plural } from "./format.js";
import { maps } from "./state.js";

/** @typedef {import("./types.d.ts").LoadOptions} LoadOptions */

const TYPES = ["xdp", "sched_cls", "sched_act", "socket_filter", "cgroup_skb", "cgroup_sock_addr", "kprobe", "tracepoint", "raw_tracepoint", "perf_event", "flow_dissector", "sk_skb"];
const PLACES = /** @type {const} */ ([
  ["use", "a held map takes its place"],
  ["previous", "that of the version before"],
  ["pinned", "the array of a pin"],
  ["max_entries", "another number of entries"],
]);

/** @type {LoadOptions} */
export const AS_THE_FILE_SAYS = { programs: [], maps: [], variables: [], values: "refuse", pinning: "refuse", move: false, switch: null };

/**
 * The JSON of the options, with what differs from what the file says.
 *
 * @param {LoadOptions} options
 * @returns {Record<string, unknown>}
 * @throws {Error} A field is not as it has to be.
 */
export function bodyOf(options) {
  /** @type {Record<string, any>} */
  const body = {};
  /** @param {string} kind @param {{name: string}[]} rows @param {(row: any) => unknown} made */
  const collect = (kind, rows, made) => {
    for (const row of rows) {
      if (row.name.trim() === "") throw new Error(`one of the ${kind} has no name`);
      (body[kind] ??= {})[row.name.trim()] = made(row);
    }
  };
  collect("programs", options.programs, ({ name, type, attach, load }) => {
    if (attach.trim() !== "" && !/^\d+$/.test(attach.trim())) throw new Error(`the attach type of ${name} is no number`);
    return {
      ...(type.trim() && { type: type.trim() }),
      ...(attach.trim() && { attach_type: Number(attach) }),
      ...(!load && { load: false }),
    };
  });
  collect("maps", options.maps, ({ name, place, value }) => {
    if (place === "previous") return { use: "previous" };
    if (value.trim() === "") throw new Error(`it is not said what takes the place of ${name}`);
    if (place === "max_entries" && !/^\d+$/.test(value.trim())) throw new Error(`the number of entries of ${name} is no number`);
    return { [place]: place === "max_entries" ? Number(value) : value.trim() };
  });
  collect("variables", options.variables, ({ name, value }) => variable(name, value.trim()));
  if (options.values !== "refuse") body["values"] = options.values;
  if (options.pinning !== "refuse") body["pinning"] = options.pinning;
  if (options.move) body["move"] = true;
  if (options.switch !== null) {
    const { map, index, program } = options.switch;
    if (!map || !/^\d+$/.test(index.trim()) || !program.trim()) throw new Error("the switch needs a table, an entry and a program");
    body["switch"] = { map, index: Number(index), program: program.trim() };
  }
  return body;
}

/** The value of a variable: a number, true or false, else a text; in quotes it is a text too. @param {string} name @param {string} text */
function variable(name, text) {
  if (text === "true" || text === "false") return text === "true";
  if (/^".*"$/.test(text)) return text.slice(1, -1);
  if (!/^-?(\d+|0x[0-9a-f]+)$/i.test(text)) return text;
  const number = text.startsWith("-") ? -Number(text.slice(1)) : Number(text);
  if (!Number.isSafeInteger(number)) throw new Error(`${name} is beyond 2^53, which a browser cannot send exactly; use jumptable load`);
  return number;
}

/** What is said beyond what the file says, in words. @param {LoadOptions} options */
export function summary(options) {
  const said = [
    options.variables.length && plural(options.variables.length, "variable", "variables"),
    options.maps.length && plural(options.maps.length, "map", "maps"),
    options.programs.length && plural(options.programs.length, "program", "programs"),
    options.move && "entries move",
    options.switch && "a switch",
    options.values !== "refuse" && `initialisers: ${options.values}`,
    options.pinning !== "refuse" && `pins: ${options.pinning}`,
  ].filter(Boolean);
  return said.length ? said.join(", ") : "as the file says";
}

/**
 * Rows of one kind, each with a name.
 *
 * @template {{name: string}} T
 * @param {{title: string, add: string, rows: T[], fresh: T, list: string, fields: (row: T, set: (change: Partial<T>) => void) => unknown,
 *   onChange: (rows: T[]) => void}} props
 */
function Rows({ title, add, rows, fresh, list, fields, onChange }) {
  /** @param {number} at @param {Partial<T>} change */
  const set = (at, change) => onChange(rows.map((row, place) => (place === at ? { ...row, ...change } : row)));
  return html`<fieldset>
    <legend>${title}</legend>
    ${rows.map(
      (row, at) => html`<div key=${at} class="option">
        <label><span>Name</span><input value=${row.name} list=${list} spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => set(at, /** @type {any} */ ({ name: event.target.value }))} /></label>
        ${fields(row, (change) => set(at, change))}
        <button type="button" class="plain" aria-label=${`Leave out ${row.name || "this row"}`} onClick=${() => onChange(rows.filter((_, place) => place !== at))}>Leave out</button>
      </div>`,
    )}
    <button type="button" onClick=${() => onChange([...rows, fresh])}>${add}</button>
  </fieldset>`;
}

/**
 * The fields.
 *
 * @param {{options: LoadOptions, known: {programs: string[], maps: string[], variables: string[]}, onChange: (options: LoadOptions) => void}} props
 *   `known`: names that the fields propose.
 */
export function Options({ options, known, onChange }) {
  /** @param {Partial<LoadOptions>} change */
  const set = (change) => onChange({ ...options, ...change });
  const held = (maps.value ?? []).map((each) => each.name);
  const lists = { "known-programs": known.programs, "known-maps": known.maps, "known-variables": known.variables, "program-types": TYPES, "held-maps": held };
  /** @param {string} name @param {"values" | "pinning"} member @param {[string, string][]} choices */
  const choice = (name, member, choices) => html`<label>
    <span>${name}</span>
    <select name=${member} value=${options[member]} onChange=${(/** @type {any} */ event) => set({ [member]: event.target.value })}>
      ${choices.map(([value, text]) => html`<option key=${value} value=${value} selected=${value === options[member]}>${text}</option>`)}
    </select>
  </label>`;
  const to = options.switch;
  return html`<div class="options">
    ${Object.entries(lists).map(([id, names]) => html`<datalist key=${id} id=${id}>${names.map((each) => html`<option key=${each} value=${each}></option>`)}</datalist>`)}
    <${Rows}
      title="Variables" add="Add a variable" list="known-variables"
      rows=${options.variables} fresh=${{ name: "", value: "" }} onChange=${(/** @type {any} */ rows) => set({ variables: rows })}
      fields=${(/** @type {any} */ row, /** @type {any} */ change) => html`<label><span>Value: a number, true, false or a text</span><input value=${row.value} spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => change({ value: event.target.value })} /></label>`}
    />
    <${Rows}
      title="Maps" add="Add a map" list="known-maps"
      rows=${options.maps} fresh=${{ name: "", place: "use", value: "" }} onChange=${(/** @type {any} */ rows) => set({ maps: rows })}
      fields=${(/** @type {any} */ row, /** @type {any} */ change) => html`<label>
          <span>Instead of it</span>
          <select value=${row.place} onChange=${(/** @type {any} */ event) => change({ place: event.target.value })}>
            ${PLACES.map(([value, text]) => html`<option key=${value} value=${value} selected=${value === row.place}>${text}</option>`)}
          </select>
        </label>
        ${row.place !== "previous" &&
        html`<label>
          <span>${row.place === "use" ? "Held map" : row.place === "pinned" ? "Pin" : "Entries"}</span>
          <input value=${row.value} list=${row.place === "use" ? "held-maps" : null} spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => change({ value: event.target.value })} />
        </label>`}`}
    />
    <${Rows}
      title="Programs" add="Add a program" list="known-programs"
      rows=${options.programs} fresh=${{ name: "", type: "", attach: "", load: true }} onChange=${(/** @type {any} */ rows) => set({ programs: rows })}
      fields=${(/** @type {any} */ row, /** @type {any} */ change) => html`<label><span>Type</span><input value=${row.type} list="program-types" placeholder="as its section says" spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => change({ type: event.target.value })} /></label>
        <label><span>Attach type, a number</span><input value=${row.attach} placeholder="auto" inputmode="numeric" autocomplete="off" onInput=${(/** @type {any} */ event) => change({ attach: event.target.value })} /></label>
        <label class="check"><input type="checkbox" checked=${row.load} onChange=${(/** @type {any} */ event) => change({ load: event.target.checked })} /><span>load it</span></label>`}
    />
    <fieldset>
      <legend>Entries</legend>
      <label class="check">
        <input type="checkbox" name="move" checked=${options.move} disabled=${to !== null} onChange=${(/** @type {any} */ event) => set({ move: event.target.checked })} />
        <span>Entries that hold a program of the version before get the new one of the same name.</span>
      </label>
      <label class="check">
        <input
          type="checkbox"
          name="switch"
          checked=${to !== null}
          onChange=${(/** @type {any} */ event) => set({ switch: event.target.checked ? { map: held[0] ?? "", index: "0", program: "" } : null, move: false })}
        />
        <span>One entry is overwritten last: for packets everything changes in one moment.</span>
      </label>
      ${to !== null &&
      html`<div class="option">
        <label>
          <span>Table</span>
          <select name="switch-map" value=${to.map} onChange=${(/** @type {any} */ event) => set({ switch: { ...to, map: event.target.value } })}>
            ${held.map((each) => html`<option key=${each} value=${each} selected=${each === to.map}>${each}</option>`)}
          </select>
        </label>
        <label><span>Entry</span><input name="switch-index" value=${to.index} inputmode="numeric" onInput=${(/** @type {any} */ event) => set({ switch: { ...to, index: event.target.value } })} /></label>
        <label><span>Program of the file</span><input name="switch-program" list="known-programs" value=${to.program} spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => set({ switch: { ...to, program: event.target.value } })} /></label>
      </div>`}
    </fieldset>
    <fieldset>
      <legend>What libbpf would do by itself</legend>
      <div class="option">
        ${choice("Initialisers of an array that is replaced", "values", [["refuse", "refuse the file"], ["set", "set them, as a change of entries"], ["ignore", "ignore them"]])}
        ${choice("Maps that ask to be pinned by name", "pinning", [["refuse", "refuse the file"], ["ignore", "do not pin them"], ["hold", "keep them for later versions"]])}
      </div>
    </fieldset>
  </div>`;
}
