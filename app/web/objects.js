// Object files: which are loaded, and how one is unloaded.

import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Problem, get, send } from "./api.js";
import { bytes, count, plural } from "./format.js";
import { isAbsent } from "./graph-data.js";
import { LoadForm, Refusal } from "./load-object.js";
import { Action, Ago, Dialog, Icon, Loading, ProblemBox, ProgramChip } from "./parts.js";
import { link } from "./route.js";
import { refusal, tell } from "./session.js";
import { mayHaveChanged, onChange } from "./state.js";

/** @typedef {import("./types.d.ts").ObjectFile} ObjectFile */

/**
 * The dialog that unloads an object file, after the service was asked whether that can be done.
 *
 * @param {{object: ObjectFile, onClose: () => void}} props
 */
function Unload({ object, onClose }) {
  const [isPossible, setPossible] = useState(false);
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [busy, setBusy] = useState(true);
  const arrays = object.maps.filter((each) => each.name !== null);

  /** @param {boolean} dry */
  async function unload(dry) {
    setBusy(true);
    try {
      await send("DELETE", `/objects/${object.name}`, { query: { dry_run: dry || null }, headers: { "If-Match": object.etag } });
      setPossible(true);
      if (dry) return;
      tell(`Object ${object.name} is unloaded.`);
      mayHaveChanged({ programs: true });
      onClose();
    } catch (error) {
      setProblem(/** @type {Problem} */ (error));
    } finally {
      setBusy(false);
    }
  }

  useEffect(() => void unload(true), []);
  const why = refusal("admin") ?? (problem !== null ? "the service refuses it" : busy || !isPossible ? "it is not checked yet" : null);
  return html`<${Dialog} title=${`Unload ${object.name}`} onClose=${onClose}>
    <p>The service lets go of ${plural(object.programs.length, "program", "programs")}${arrays.length > 0 ? ` and ${plural(arrays.length, "array", "arrays")}, with the entries in ${arrays.length === 1 ? "it" : "them"}` : ""}:</p>
    <p class="inline">${object.programs.map((each) => html`<${ProgramChip} key=${each.name} program=${each} />`)}${arrays.map((each) => html`<code key=${each.name}>${each.name}</code>`)}</p>
    ${problem === null && busy && html`<${Loading} what="whether anything needs it" />`}
    ${problem !== null && html`<${Refusal} problem=${problem} />`}
    ${isPossible && problem === null && html`<p class="note ok"><${Icon} name="check" /><span>No entry of another table holds any of them.</span></p>`}
    <p class="note"><${Icon} name="warn" /><span>The service does not see what is attached: a program that stays attached jumps into nothing.</span></p>
    <footer class="buttons">
      <button type="button" onClick=${onClose}>Cancel</button>
      <${Action} kind="primary" why=${why} onPress=${() => void unload(false)}>Unload<//>
    </footer>
  <//>`;
}

/** @param {{object: ObjectFile, isChosen: boolean, onChoose: () => void, onUnload: () => void}} props */
function Row({ object, isChosen, onChoose, onUnload }) {
  const { name, version, previous, programs, maps } = object;
  const why = refusal("admin");
  return html`<tr>
    <td>
      <span class="name">${name}</span> <span class="badge quiet">version ${version}</span>
      <p class="muted small">loaded <${Ago} at=${object.loaded_at} /> from ${object.file === null ? "a request" : html`<code>${object.file}</code>`}</p>
      <p class="muted small">${bytes(object.bytes)}, sha256 <code title=${object.sha256}>${object.sha256.slice(0, 12)}</code></p>
      ${previous && html`<p class="muted small">Version ${previous.version}, loaded <${Ago} at=${previous.loaded_at} />, is kept so that changes can be undone.</p>`}
      ${object.state === "unavailable" && html`<p class="note bad small"><${Icon} name="warn" /><span>${object.reason}</span></p>`}
      ${object.warnings.map((one) => html`<p key=${one} class="note warn small"><${Icon} name="warn" /><span>${one}</span></p>`)}
      <p class="buttons">
        <${Action} why=${why ?? (isChosen ? "its form is open" : null)} label=${`New version of ${name}`} onPress=${onChoose}>New version …<//>
        <${Action} why=${why} label=${`Unload ${name}`} onPress=${onUnload}>Unload …<//>
      </p>
    </td>
    <td>
      ${programs.map(
        (one) => html`<p key=${one.name}><${ProgramChip} program=${one} /> <span class="muted small">${one.type}, ${plural(one.instructions, "instruction", "instructions")}</span></p>`,
      )}
    </td>
    <td>
      ${maps.map(
        (one) => html`<p key=${one.map}>
          ${one.name === null ? html`<code>${one.map}</code>` : html`<a href=${link(["maps", one.name])}>${one.name}</a>`}
          <span class="muted small"> ${one.type}, ${count(one.max_entries)}${one.use ? `; uses ${one.use}` : ""}</span>
        </p>`,
      )}
    </td>
  </tr>`;
}

export function View() {
  const [listed, setListed] = useState(/** @type {import("./types.d.ts").ObjectFiles | null} */ (null));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [leaving, setLeaving] = useState(/** @type {ObjectFile | null} */ (null));
  const [chosen, setChosen] = useState(/** @type {ObjectFile | null} */ (null));
  const read = () =>
    get("/objects").then(
      (found) => {
        setListed(found);
        setProblem(null);
      },
      (error) => setProblem(error),
    );
  useEffect(() => {
    void read();
    return onChange((_, change) => change === null && void read()); // programs and maps that are held or released
  }, []);

  if (problem !== null)
    return html`<h1>Objects</h1>
      ${isAbsent(problem)
        ? html`<p class="note"><${Icon} name="warn" /><span>This service has no route <code>/objects</code> (404), so it loads no object files. A newer version of jumptable does.</span></p>`
        : problem.status === 403
          ? html`<p class="note"><${Icon} name="lock" /><span>You may not see them: ${refusal("admin") ?? problem.message}.</span></p>`
          : html`<${ProblemBox} error=${problem} />`}`;
  if (listed === null) return html`<h1>Objects</h1><${Loading} what="the objects" />`;
  const { objects } = listed;
  return html`<h1>Objects</h1>
    <section class="card" aria-labelledby="loaded">
      <h2 id="loaded">Loaded object files</h2>
      ${objects.length === 0
        ? html`<p class="muted">No object file is loaded. One that clang has made brings programs and tables of its own: <code>clang -g -O2 -target bpf -c parser.bpf.c -o parser.o</code></p>`
        : html`<div class="scroll" tabindex="0" role="region" aria-label="Table of objects">
            <table class="rows objects">
              <thead><tr><th>Object</th><th>Programs</th><th>Maps</th></tr></thead>
              <tbody>
                ${objects.map(
                  (each) => html`<${Row} key=${each.name} object=${each} isChosen=${chosen?.name === each.name} onChoose=${() => setChosen(each)} onUnload=${() => setLeaving(each)} />`,
                )}
              </tbody>
            </table>
          </div>`}
    </section>
    <${LoadForm}
      key=${chosen?.name ?? ""}
      listed=${listed}
      chosen=${chosen}
      onLeave=${() => setChosen(null)}
      onLoaded=${() => {
        void read();
        mayHaveChanged({ programs: true });
      }}
    />
    ${leaving && html`<${Unload} object=${leaving} onClose=${() => { setLeaving(null); void read(); }} />`}`;
}
