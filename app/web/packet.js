// A packet for a program: what goes in, and where it came out.

import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { send } from "./api.js";
import { count, nanos } from "./format.js";
import { Action, Icon, Loading, ProblemBox, ProgramChip } from "./parts.js";
import { go, link } from "./route.js";
import { refusal } from "./session.js";
import { programs } from "./state.js";

/** @typedef {import("./types.d.ts").Run} Run */

const LEAST_BYTES = 14;
const MOST_REPEATS = 1_000_000;
const ROW = 16; // bytes in a row of a dump
const EXAMPLES = [
  ["First byte 3", "03" + "00".repeat(13)],
  ["IPv4, UDP", "ffffffffffff0200000000010800" + "4500001c0000000040110000c0000201c0000202" + "0035003500080000"],
  ["IPv6, TCP", "ffffffffffff020000000001" + "86dd" + "6000000000140640" + "20010db8".padEnd(32, "0") + "20010db8".padEnd(31, "0") + "1" + "01bb01bb00000000000000005002ffff00000000"],
];

/** The hex digits of what was typed: spaces, colons and 0x are left out. @param {string} text */
const digits = (text) => text.replace(/0x|[\s:]/gi, "").toLowerCase();

/** A packet in rows of 16 bytes. @param {{hex: string, was: string}} props `was`: bytes that differ from it stand out. */
function Dump({ hex, was }) {
  const bytes = hex.match(/../g) ?? [];
  const before = was.match(/../g) ?? [];
  const rows = Array.from({ length: Math.ceil(bytes.length / ROW) }, (_, row) => row * ROW);
  return html`<div class="scroll" tabindex="0" role="region" aria-label="The packet after the run">
    <pre class="dump">${rows.map(
      (start) => html`<span class="offset">${start.toString(16).padStart(4, "0")}</span>${bytes
          .slice(start, start + ROW)
          .map((byte, place) => html`<span class=${byte === before[start + place] ? "" : "differs"}> ${byte}</span>`)}${"\n"}`,
    )}</pre>
  </div>`;
}

/** @param {{query: URLSearchParams}} props */
export function View({ query }) {
  const all = programs.value;
  const asked = query.get("program") ?? "";
  const [text, setText] = useState(EXAMPLES[0]?.[1] ?? "");
  const [repeat, setRepeat] = useState("1");
  const [run, setRun] = useState(/** @type {{run: Run, packet: string, program: string} | null} */ (null));
  const [problem, setProblem] = useState(/** @type {unknown} */ (null));
  const [busy, setBusy] = useState(false);
  if (all === null) return html`<h1>Packet</h1><${Loading} what="the programs" />`;

  const name = all.some((each) => each.name === asked) ? asked : (all.find((each) => each.name === "entry") ?? all[0])?.name;
  const hex = digits(text);
  const why =
    refusal("writer") ??
    (name === undefined
      ? "no program is held"
      : !/^([0-9a-f]{2})*$/.test(hex)
        ? "the packet is no hex: two digits for each byte"
        : hex.length < 2 * LEAST_BYTES
          ? `the packet needs ${LEAST_BYTES} bytes at least`
          : null);

  async function start() {
    setBusy(true);
    setProblem(null);
    try {
      const response = await send("POST", `/programs/${name}/run`, { json: { packet: hex, repeat: Number(repeat) } });
      setRun({ run: await response.json(), packet: hex, program: name ?? "" });
    } catch (error) {
      setRun(null);
      setProblem(error);
    } finally {
      setBusy(false);
    }
  }

  return html`<h1>Packet</h1>
    <div class="packet-layout">
      <form
        class="card stack"
        aria-label="What goes in"
        onSubmit=${(/** @type {Event} */ event) => {
          event.preventDefault();
          if (why === null && !busy) void start();
        }}
      >
        <label>
          <span>Program</span>
          <select name="program" value=${name} onChange=${(/** @type {any} */ event) => go(link(["packet"], { program: event.target.value }), true)}>
            ${all.map((each) => html`<option key=${each.name} value=${each.name} selected=${each.name === name}>${each.name}${each.type ? ` (${each.type})` : ""}</option>`)}
          </select>
        </label>
        <label>
          <span>Packet, in hex <span class="muted">(${count(Math.floor(hex.length / 2))} bytes)</span></span>
          <textarea name="packet" class="hex" rows="7" spellcheck="false" autocomplete="off" value=${text} onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>
        </label>
        <p class="buttons">
          ${EXAMPLES.map(([title, packet]) => html`<button key=${title} type="button" onClick=${() => setText(packet ?? "")}>${title}</button>`)}
        </p>
        <label class="narrow">
          <span>Repeat</span>
          <input name="repeat" type="number" min="1" max=${MOST_REPEATS} value=${repeat} onInput=${(/** @type {any} */ event) => setRepeat(event.target.value)} />
        </label>
        <p class="note"><${Icon} name="warn" /><span>This runs the real program, with its side effects on maps. No packet enters or leaves the machine.</span></p>
        ${why !== null && html`<p class="muted">Not possible: ${why}.</p>`}
        <footer><${Action} kind="primary" why=${busy ? "it is under way" : why} onPress=${() => void start()}>Run<//></footer>
      </form>
      <section class="card stack" aria-label="Where it came out" aria-live="polite">
        <${ProblemBox} error=${problem} />
        ${run === null && problem === null && html`<p class="muted">Where the packet comes out is shown here.</p>`}
        ${run !== null &&
        html`<p class="outcome">
            <${ProgramChip} program=${{ name: run.program, id: null }} /><${Icon} name="arrow" />
            <strong>${run.run.meaning ?? run.run.returned}</strong>
            <span class="muted">returned ${run.run.returned}, ${nanos(run.run.duration_ns)} a run</span>
          </p>
          ${run.run.meaning === "XDP_ABORTED" && html`<p class="note warn"><${Icon} name="warn" /><span>XDP_ABORTED: often a jump into an empty entry that fell through.</span></p>`}
          <h2>The packet afterwards</h2>
          <p class="muted">${run.run.packet === run.packet ? "It is unchanged." : "Bytes that have changed stand out."}</p>
          <${Dump} hex=${run.run.packet} was=${run.packet} />`}
      </section>
    </div>`;
}
