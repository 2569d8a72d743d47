// Loading an object file: where it is, how it is loaded, what the verifier says to it, and what would change.

import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { Problem, get, send } from "./api.js";
import { bytes, count, duration, plural } from "./format.js";
import { AS_THE_FILE_SAYS, Options, bodyOf, summary } from "./load-options.js";
import { Action, Difference, Icon, Loading, ProblemBox, ProgramChip } from "./parts.js";
import { PERIODS, PRESELECTED } from "./review.js";
import { link } from "./route.js";
import { refusal, tell } from "./session.js";

/** @typedef {import("./types.d.ts").ObjectFile} ObjectFile */
/** @typedef {import("./types.d.ts").LoadedObjectFile} LoadedObjectFile */

const SHOWN = 50; // entries of one map
const NAME = /^[A-Za-z0-9_.-]{1,64}$/;

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

/** Why an object file is refused: by the verifier, or for another reason. @param {{problem: Problem}} props */
export function Refusal({ problem }) {
  const { program, errno, message, instruction, source, log_tail: log, entries } = problem.facts;
  const names = problem.facts["variables"] ?? problem.facts["programs"] ?? problem.facts["maps"]; // those that the file has
  if (problem.code !== "object-refused")
    return html`<${ProblemBox} error=${problem} />
      ${Array.isArray(names) && html`<p class="muted">There are: ${names.map((each, place) => html`${place > 0 && ", "}<code key=${each}>${each}</code>`)}</p>`}
      ${entries?.length > 0 &&
      html`<ul class="inline" aria-label="Entries">
        ${entries.map((/** @type {any} */ each) => html`<li key=${`${each.map}/${each.index}`}><a href=${link(["maps", each.map], { entry: each.index })}>${each.map} ${each.index}</a> holds ${each.program}</li>`)}
      </ul>`}`;
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
 * What loading an object file would do.
 *
 * @param {{would: LoadedObjectFile, before: ObjectFile | undefined, within: number, onWithin: (seconds: number) => void}} props
 */
function Verified({ would, before, within, onWithin }) {
  const { programs, maps, warnings, version } = would.object;
  const changed = would.entries ?? [];
  return html`<p class="note ok" role="status">
      <${Icon} name="check" />
      <span>
        ${version === before?.version
          ? `The same file is loaded with the same options already, as version ${version}.`
          : `The kernel takes ${plural(programs.length, "program", "programs")}. Nothing is loaded yet: it would be version ${version}.`}
      </span>
    </p>
    ${warnings.map((each) => html`<p key=${each} class="note warn"><${Icon} name="warn" /><span>${each}</span></p>`)}
    ${would.fit === "type-only" && html`<p class="note warn"><${Icon} name="warn" /><span>Only the types could be compared: the kernel may still refuse to write an entry.</span></p>`}
    <div class="scroll" tabindex="0" role="region" aria-label="What the file has">
      <table class="rows">
        <thead><tr><th>Program or map</th><th>Type</th><th>Attach type</th><th class="number">Size</th></tr></thead>
        <tbody>
          ${programs.map(
            (each) => html`<tr key=${each.name}>
              <td><${ProgramChip} program=${each} /></td><td>${each.type}</td><td class="mono">${each.attach_type}</td>
              <td class="number">${plural(each.instructions, "instruction", "instructions")}</td>
            </tr>`,
          )}
          ${maps.map(
            (each) => html`<tr key=${each.map}>
              <td><code>${each.name ?? each.map}</code>${each.use && html` <span class="muted">is ${each.use === "previous" ? "that of the version before" : each.use}</span>`}</td>
              <td>${each.type}</td><td></td>
              <td class="number">${plural(each.max_entries, "entry", "entries")}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
    ${changed.length === 0 && version !== before?.version && html`<p class="muted">No entry of a held table would change.</p>`}
    ${changed.length > 0 &&
    html`<div class="scroll" tabindex="0" role="region" aria-label="Difference">
        <table class="rows">
          <thead><tr><th class="tight">Map</th><th class="tight">Entry</th><th>Difference</th></tr></thead>
          <tbody>
            ${changed.flatMap(({ map, entries }) => [
              ...entries.slice(0, SHOWN).map(
                (each) => html`<tr key=${`${map}/${each.index}`}>
                  <td>${map}</td>
                  <td class="mono">${each.index}</td>
                  <td><${Difference} before=${each.before} after=${each.after} /></td>
                </tr>`,
              ),
              entries.length > SHOWN && html`<tr key=${map}><td>${map}</td><td></td><td class="muted">and ${count(entries.length - SHOWN)} more</td></tr>`,
            ])}
          </tbody>
        </table>
      </div>
      <label class="within">
        <span>Undo the entries unless somebody confirms them</span>
        <select name="within" value=${within} onChange=${(/** @type {any} */ event) => onWithin(Number(event.target.value))}>
          ${PERIODS.map((each) => html`<option key=${each} value=${each} selected=${each === within}>within ${duration(each)}</option>`)}
          <option value="0" selected=${within === 0}>they stand at once</option>
        </select>
      </label>`}`;
}

/** The condition under which nobody else has loaded anything under the name meanwhile. @param {string} name */
async function unchanged(name) {
  try {
    return { "If-Match": (await get(`/objects/${name}`)).etag };
  } catch (error) {
    if (error instanceof Problem && error.code === "object-unknown") return { "If-None-Match": "*" };
    throw error;
  }
}

/**
 * The form that loads an object file, or a new version.
 *
 * @param {{listed: import("./types.d.ts").ObjectFiles, chosen: ObjectFile | null, onLeave: () => void, onLoaded: () => void}} props
 *   `chosen`: the object file of which it is a new version; null: any.
 */
export function LoadForm({ listed, chosen, onLeave, onLoaded }) {
  const { objects, upload, object_dirs: folders } = listed;
  const [isSent, setSent] = useState(chosen === null ? upload : chosen.file === null);
  const [file, setFile] = useState(/** @type {File | null} */ (null));
  const [path, setPath] = useState(chosen?.file ?? "");
  const [typed, setName] = useState("");
  const [note, setNote] = useState("");
  const [options, setOptions] = useState(AS_THE_FILE_SAYS);
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [would, setWould] = useState(/** @type {LoadedObjectFile | null} */ (null));
  const [guard, setGuard] = useState(/** @type {Record<string, string>} */ ({}));
  const [within, setWithin] = useState(PRESELECTED);
  const [variables, setVariables] = useState(/** @type {string[]} */ ([]));
  const name = chosen?.name ?? typed;
  const before = objects.find((each) => each.name === name);
  const shown = would?.object ?? before;
  const known = { programs: shown?.programs.map((each) => each.program) ?? [], maps: shown?.maps.map((each) => each.map) ?? [], variables };

  /** @type {Record<string, unknown>} */
  let body = {};
  let wrong = null;
  try {
    body = bodyOf(options);
  } catch (error) {
    wrong = /** @type {Error} */ (error).message;
  }
  const where = isSent
    ? upload ? null : "the service takes no file that is sent: objects.upload of its configuration is not set"
    : folders.length > 0 ? null : "the service may read no file: objects.object_dirs of its configuration is not set";
  const why =
    refusal("admin") ??
    where ??
    (busy ? "it is under way" : isSent && file === null ? "no file is chosen" : !isSent && !path.startsWith("/") ? "the path of the file is not absolute" : null) ??
    (NAME.test(name) ? wrong : "a name has 1 to 64 characters of A-Z a-z 0-9 _ . -");
  const whyLoad = why ?? (would === null ? "it is not verified yet" : null);

  /** Take over what was typed: what was verified is another thing then. @param {() => void} set */
  const edit = (set) => {
    set();
    setWould(null);
    setProblem(null);
  };
  /** @param {string} of The path or the name of a file. */
  const propose = (of) => {
    const base = of.split("/").at(-1) ?? "";
    if (typed === "") setName(base.replace(/(\.bpf)?\.(o|elf)$/, "").replace(/[^A-Za-z0-9_.-]/g, "_").slice(0, 64));
  };

  /** @param {boolean} dry */
  async function put(dry) {
    setBusy(true);
    setProblem(null);
    if (dry) setWould(null);
    try {
      const headers = dry ? await unchanged(name) : guard;
      const query = { dry_run: dry || null, note, confirm_within: !dry && would?.entries?.length ? within || null : null };
      const sent = isSent
        ? { headers: { ...headers, "Content-Type": "application/octet-stream" }, body: /** @type {File} */ (file) }
        : { headers, json: { file: path, ...body } };
      const more = isSent && Object.keys(body).length > 0 ? { options: JSON.stringify(body) } : {};
      const response = await send("PUT", `/objects/${name}`, { query: { ...query, ...more }, ...sent });
      /** @type {LoadedObjectFile} */
      const answer = await response.json();
      if (dry) {
        setGuard(headers);
        setWould(answer);
      } else {
        tell(`Object ${name} is loaded, as version ${answer.object.version}.`);
        setWould(null);
        onLoaded();
      }
    } catch (error) {
      setProblem(/** @type {Problem} */ (error));
      if (!dry) setWould(null); // what was verified may not be so any more
      const names = error instanceof Problem ? error.facts["variables"] : null;
      if (Array.isArray(names)) setVariables(names);
    } finally {
      setBusy(false);
    }
  }

  return html`<section class="card" aria-labelledby="load">
    <header>
      <h2 id="load">${chosen === null ? "Load an object file" : `A new version of ${chosen.name}`}</h2>
      ${chosen !== null && html`<button type="button" class="plain" onClick=${onLeave}>Load another one</button>`}
    </header>
    <form class="stack upload" aria-label="Load an object file" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
      <div class="choices" role="radiogroup" aria-label="Where the file is">
        <span class="muted">The file is</span>
        <label class="check"><input type="radio" name="from" checked=${isSent} onChange=${() => edit(() => setSent(true))} /><span>on this computer</span></label>
        <label class="check"><input type="radio" name="from" checked=${!isSent} onChange=${() => edit(() => setSent(false))} /><span>on the machine of the service</span></label>
      </div>
      <div class="filters">
        ${isSent
          ? html`<label class="long">
              <span>Object file${file ? ` (${bytes(file.size)})` : ""}</span>
              <input
                type="file"
                name="object"
                accept=".o,.elf,.bpf"
                onChange=${(/** @type {any} */ event) => {
                  const picked = event.target.files[0] ?? null;
                  edit(() => setFile(picked));
                  if (picked) propose(picked.name);
                }}
              />
            </label>`
          : html`<label class="long">
              <span>Path${folders.length > 0 && html` <span class="muted">(below ${folders.join(" or ")})</span>`}</span>
              <input name="path" value=${path} placeholder=${`${folders[0] ?? ""}/parser.o`} spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => edit(() => setPath(event.target.value.trim()))} onChange=${(/** @type {any} */ event) => propose(event.target.value)} />
            </label>`}
        ${chosen === null &&
        html`<label><span>Name</span><input name="name" value=${typed} spellcheck="false" autocomplete="off" onInput=${(/** @type {any} */ event) => edit(() => setName(event.target.value))} /></label>`}
        <label><span>Why <span class="muted">(kept with changes of entries)</span></span><input name="note" value=${note} maxlength="1000" autocomplete="off" onInput=${(/** @type {any} */ event) => setNote(event.target.value)} /></label>
      </div>
      ${where !== null && html`<p class="note"><${Icon} name="lock" /><span>Nothing can be loaded so: ${where}.</span></p>`}
      <details class="how"><summary>How it is loaded: <span class="muted">${summary(options)}</span></summary>
        <${Options} options=${options} known=${known} onChange=${(/** @type {any} */ next) => edit(() => setOptions(next))} />
      </details>
      ${busy && html`<${Loading} what="the verifier's answer" />`}
      ${would && html`<${Verified} would=${would} before=${before} within=${within} onWithin=${setWithin} />`}
      ${problem !== null && html`<${Refusal} problem=${problem} />`}
      ${wrong !== null && html`<p class="note warn" role="status"><${Icon} name="warn" /><span>${wrong}</span></p>`}
      <p class="buttons">
        <${Action} kind=${would === null ? "primary" : ""} why=${why} onPress=${() => void put(true)}>Verify<//>
        <${Action} kind=${would === null ? "" : "primary"} why=${whyLoad} onPress=${() => void put(false)}>${before === undefined ? "Load" : "Load as a new version"}<//>
      </p>
    </form>
  </section>`;
}
