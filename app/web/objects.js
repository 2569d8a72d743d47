// Object files: which are loaded, and the upload of one, with the verifier's answer beside the source.

import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Problem, get, send } from "./api.js";
import { bytes, count, duration, plural } from "./format.js";
import { isAbsent } from "./graph-data.js";
import { Action, Ago, Difference, Icon, Loading, ProblemBox, ProgramChip } from "./parts.js";
import { PERIODS, PRESELECTED } from "./review.js";
import { refusal, tell } from "./session.js";
import { mayHaveChanged, onChange } from "./state.js";

/** @typedef {import("./types.d.ts").ObjectFile} ObjectFile */
/** @typedef {import("./types.d.ts").LoadedObjectFile} LoadedObjectFile */

const SHOWN = 50; // entries of one map
const NAME = /^[A-Za-z0-9_.-]{1,64}$/;

/** @param {{objects: ObjectFile[]}} props */
function Loaded({ objects }) {
  if (objects.length === 0) return html`<p class="muted">No object is loaded.</p>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Table of objects">
    <table class="rows">
      <thead><tr><th>Object</th><th>Programs</th><th>Maps</th><th>Loaded</th><th class="wide">From</th></tr></thead>
      <tbody>
        ${objects.map(
          (each) => html`<tr key=${each.name}>
            <td>
              <span class="name">${each.name}</span> <span class="muted">version ${each.version}</span>
              ${each.state === "unavailable" && html`<p class="note bad small"><${Icon} name="warn" />${each.reason}</p>`}
              ${each.warnings.map((one) => html`<p key=${one} class="note warn small"><${Icon} name="warn" />${one}</p>`)}
            </td>
            <td>${each.programs.map((one) => html`<p key=${one.name}><${ProgramChip} program=${one} /> <span class="muted">${one.type}, ${plural(one.instructions, "instruction", "instructions")}</span></p>`)}</td>
            <td>${each.maps.map((one) => html`<p key=${one.map}>${one.name ?? one.map} <span class="muted">${one.type}, ${count(one.max_entries)}${one.use ? `, uses ${one.use}` : ""}</span></p>`)}</td>
            <td class="nowrap"><${Ago} at=${each.loaded_at} /></td>
            <td class="wide"><code>${each.file ?? "a request"}</code><p class="muted">${bytes(each.bytes)}, sha256 <code title=${each.sha256}>${each.sha256.slice(0, 12)}</code></p></td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/**
 * The verifier's log in parts: a line of the source, and what the verifier says about it.
 *
 * The log has the source as comments: "; return ctx->data; @ parser.c:12" (the place since Linux 6.12).
 *
 * @param {string[]} log
 */
function bySource(log) {
  /** @type {{source: string, place: string, lines: string[]}[]} */
  const parts = [];
  for (const line of log) {
    const comment = /^; (.*?)(?: @ (\S+:\d+))?\s*$/.exec(line);
    if (comment) parts.push({ source: comment[1] ?? "", place: comment[2] ?? "", lines: [] });
    else {
      if (parts.length === 0) parts.push({ source: "", place: "", lines: [] });
      parts.at(-1)?.lines.push(line);
    }
  }
  return parts;
}

/** Why the kernel refused an object. @param {{problem: Problem}} props */
function Verdict({ problem }) {
  const { program, errno, message, instruction, source, log_tail: log } = problem.facts;
  if (problem.code !== "object-refused") return html`<${ProblemBox} error=${problem} />`;
  return html`<div class="problem" role="alert">
      <${Icon} name="warn" />
      <div>
        <strong>The kernel refuses ${program ? `program ${program}` : "the object"}${errno ? ` (${errno})` : ""}</strong>
        <p>${message}</p>
      </div>
    </div>
    ${source &&
    html`<div class="source-line">
      <code class="place">${source.file ? `${source.file}:${source.line}` : "source"}</code>
      <code class="text">${source.text}</code>
      <span class="answer"><${Icon} name="warn" />${message}</span>
    </div>`}
    ${instruction && html`<p class="muted">at instruction ${instruction.index}: <code>${instruction.text}</code></p>`}
    ${log?.length > 0 &&
    html`<details open>
      <summary>The end of the verifier's log, beside the source</summary>
      <div class="scroll log" tabindex="0" role="region" aria-label="The verifier's log">
        <table class="rows">
          <thead><tr><th>Source</th><th>What the verifier says</th></tr></thead>
          <tbody>
            ${bySource(log).map(
              (part, number) => html`<tr key=${number}>
                <td>${part.place && html`<code class="place">${part.place}</code>`}<code>${part.source}</code></td>
                <td><pre>${part.lines.join("\n")}</pre></td>
              </tr>`,
            )}
          </tbody>
        </table>
      </div>
    </details>`}`;
}

/**
 * What loading an object would do.
 *
 * @param {{would: LoadedObjectFile, within: number, onWithin: (seconds: number) => void}} props
 */
function Verified({ would, within, onWithin }) {
  const changed = would.entries ?? [];
  return html`<p class="note ok" role="status">
      <${Icon} name="check" />
      <span>The verifier accepts ${plural(would.object.programs.length, "program", "programs")}: ${would.object.programs.map((each) => each.program).join(", ")}. Nothing is loaded yet.</span>
    </p>
    ${changed.length > 0 &&
    html`<table class="rows">
        <thead><tr><th class="tight">Map</th><th class="tight">Entry</th><th>Difference</th></tr></thead>
        <tbody>
          ${changed.flatMap(({ map, entries }) =>
            entries.slice(0, SHOWN).map(
              (each) => html`<tr key=${`${map}/${each.index}`}>
                <td>${map}</td>
                <td class="mono">${each.index}</td>
                <td><${Difference} before=${each.before} after=${each.after} /></td>
              </tr>`,
            ),
          )}
        </tbody>
      </table>
      <label class="within">
        <span>Undo it unless somebody confirms it</span>
        <select name="within" value=${within} onChange=${(/** @type {any} */ event) => onWithin(Number(event.target.value))}>
          ${PERIODS.map((each) => html`<option key=${each} value=${each} selected=${each === within}>within ${duration(each)}</option>`)}
          <option value="0" selected=${within === 0}>it stands at once</option>
        </select>
      </label>`}`;
}

/** @param {{onLoaded: () => void}} props */
function Upload({ onLoaded }) {
  const [file, setFile] = useState(/** @type {File | null} */ (null));
  const [name, setName] = useState("");
  const [note, setNote] = useState("");
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [would, setWould] = useState(/** @type {LoadedObjectFile | null} */ (null));
  const [within, setWithin] = useState(PRESELECTED);
  const why =
    refusal("admin") ??
    (busy ? "it is under way" : file === null ? "no file is chosen" : NAME.test(name) ? null : "a name has 1 to 64 characters of A-Z a-z 0-9 _ . -");

  /** @param {boolean} dry */
  async function put(dry) {
    setBusy(true);
    setProblem(null);
    const confirm = would?.entries?.length ? within || null : null;
    if (dry) setWould(null);
    try {
      const response = await send("PUT", `/objects/${name}`, {
        query: { dry_run: dry || null, note, confirm_within: dry ? null : confirm },
        headers: { "Content-Type": "application/octet-stream" },
        body: /** @type {File} */ (file),
      });
      /** @type {LoadedObjectFile} */
      const answer = await response.json();
      if (dry) setWould(answer);
      else {
        tell(`Object ${name} is loaded, as version ${answer.object.version}.`);
        setWould(null);
        onLoaded();
      }
    } catch (error) {
      setProblem(/** @type {Problem} */ (error));
    } finally {
      setBusy(false);
    }
  }

  return html`<form class="stack upload" aria-label="Load an object file" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
    <div class="filters">
      <label>
        <span>Object file, of clang -target bpf -g</span>
        <input
          type="file"
          name="object"
          accept=".o,.elf,.bpf"
          onChange=${(/** @type {any} */ event) => {
            const chosen = event.target.files[0] ?? null;
            setFile(chosen);
            setWould(null);
            setProblem(null);
            if (chosen && name === "") setName(chosen.name.replace(/(\.bpf)?\.(o|elf)$/, "").replace(/[^A-Za-z0-9_.-]/g, "_").slice(0, 64));
          }}
        />
      </label>
      <label><span>Name</span><input name="name" value=${name} spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => setName(event.target.value)} /></label>
      <label><span>Why</span><input name="note" value=${note} maxlength="1000" autocomplete="off" onInput=${(/** @type {any} */ event) => setNote(event.target.value)} /></label>
      <span class="buttons">
        <${Action} why=${why} onPress=${() => void put(true)}>Verify only<//>
        <${Action} kind="primary" why=${why} onPress=${() => void put(false)}>Load<//>
      </span>
    </div>
    ${file && html`<p class="muted">${file.name}, ${bytes(file.size)}</p>`}
    ${busy && html`<${Loading} what="the verifier's answer" />`}
    ${would && html`<${Verified} would=${would} within=${within} onWithin=${setWithin} />`}
    ${problem !== null && html`<${Verdict} problem=${problem} />`}
  </form>`;
}

export function Objects() {
  const [objects, setObjects] = useState(/** @type {ObjectFile[] | null} */ (null));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const read = () =>
    get("/objects").then(
      (found) => {
        setObjects(found.objects);
        setProblem(null);
      },
      (error) => setProblem(error),
    );
  useEffect(() => {
    void read();
    return onChange((map) => map === null && void read());
  }, []);
  return html`<section class="card" aria-labelledby="objects">
    <h2 id="objects">Objects</h2>
    ${problem !== null && isAbsent(problem)
      ? html`<p class="note"><${Icon} name="warn" /><span>This service has no route <code>/objects</code> (404), so it loads no object files. A newer version of jumptable does.</span></p>`
      : problem !== null
        ? problem.status === 403
          ? html`<p class="note"><${Icon} name="lock" /><span>You may not see them: ${problem.message}.</span></p>`
          : html`<${ProblemBox} error=${problem} />`
        : objects === null
          ? html`<${Loading} what="the objects" />`
          : html`<${Loaded} objects=${objects} />
              <${Upload}
                onLoaded=${() => {
                  void read();
                  mayHaveChanged({ programs: true });
                }}
              />`}
  </section>`;
}
