// The page: what stands above every view, and which view is shown.

import { html, render } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { askForToken, hasToken, useToken } from "./api.js";
import { duration } from "./format.js";
import { follow, live, reconnect } from "./live.js";
import { Overview } from "./overview.js";
import { Icon, Loading } from "./parts.js";
import { link, route } from "./route.js";
import { SignIn } from "./sign-in.js";
import { index, loadIndex, loadMaps, loadReadiness, maps, message, notReady, poll, second } from "./state.js";
import { WaitingList } from "./waiting.js";

const VIEWS = /** @type {const} */ ([
  ["", "Overview"],
  ["changes", "Changes"],
  ["graph", "Graph"],
  ["programs", "Programs"],
  ["objects", "Objects"],
  ["packet", "Packet"],
]);

/** What a view shows, by the first part of the path. Those beyond the first are loaded when they are opened. */
const LOADERS = /** @type {Record<string, () => Promise<any>>} */ ({
  maps: () => import("./table.js"),
  changes: () => import("./changes.js"),
  graph: () => import("./graph.js"),
  programs: () => import("./programs.js"),
  objects: () => import("./objects.js"),
  packet: () => import("./packet.js"),
});

/** A view whose files the service did not give: it is away, or another version by now. */
const Unloaded = () => html`<p class="note bad" role="alert">The view cannot be loaded. Load the page again when the service is there.</p>`;

/** @param {{name: string, path: string[], query: URLSearchParams}} props */
function View({ name, path, query }) {
  const [loaded, setLoaded] = useState(/** @type {Record<string, any>} */ ({}));
  const load = LOADERS[name];
  useEffect(() => {
    if (load && !loaded[name])
      void load().then(
        (found) => setLoaded((all) => ({ ...all, [name]: found.View })),
        () => setLoaded((all) => ({ ...all, [name]: Unloaded })),
      );
  }, [name]);
  if (name === "") return html`<${Overview} />`;
  if (!load) return html`<h1>No such view</h1><p><a href="#/">To the overview</a></p>`;
  const Found = loaded[name];
  return Found ? html`<${Found} key=${path.join("/")} path=${path} query=${query} />` : html`<${Loading} what="the view" />`;
}

function Live() {
  second.value;
  const { state, since } = live.value;
  const seconds = (Date.now() - since) / 1000;
  const text = state === "cut off" && seconds >= 2 ? `cut off for ${duration(seconds)}` : state;
  return html`<span class=${`live ${state.replace(" ", "-")}`} title="Whether this page follows the events of the service">
    <i aria-hidden="true"></i>${text}
  </span>`;
}

function CutOff() {
  const { state, since, reason, isRefused } = live.value;
  if (state !== "cut off") return null;
  return html`<p class="cut-off" role="alert">
    <${Icon} name="warn" />
    <span>
      Cut off: ${reason}.
      ${isRefused ? " Without events, the page reads everything again every few seconds." : ` What you see is as of ${new Date(since).toLocaleTimeString()}. The page tries again by itself.`}
    </span>
    <button type="button" onClick=${reconnect}>Try now</button>
  </p>`;
}

function Who() {
  const caller = index.value?.caller;
  if (!caller) return null;
  const leave = () => {
    useToken(null, false);
    location.reload();
  };
  return html`<span class="who" title="Who you are to the service">
    ${caller.actor} <span class="badge quiet">${index.value?.read_only ? "read-only" : (caller.role ?? "no role")}</span>
    ${hasToken() && html`<button type="button" class="plain" onClick=${leave}>Sign out</button>`}
  </span>`;
}

function Message() {
  const now = message.value;
  useEffect(() => {
    if (now === null || now.isBad) return;
    const timer = setTimeout(() => message.value === now && (message.value = null), 8000);
    return () => clearTimeout(timer);
  }, [now]);
  return html`<div class="messages" role="status">
    ${now &&
    html`<p class=${now.isBad ? "message bad" : "message"}>
      <${Icon} name=${now.isBad ? "warn" : "check"} /><span>${now.text}</span>
      <button type="button" class="plain" aria-label="Dismiss" onClick=${() => (message.value = null)}><${Icon} name="cross" /></button>
    </p>`}
  </div>`;
}

function Page() {
  const { path, query } = route.value;
  const name = path[0] ?? "";
  const isSignedOut = index.value !== null && (index.value.caller === null || askForToken.value !== null);

  useEffect(() => {
    const place = name === "maps" ? path[1] : VIEWS.find(([each]) => each === name)?.[1];
    const waiting = (maps.value ?? []).reduce((sum, each) => sum + each.waiting.length, 0);
    document.title = `${waiting ? `(${waiting} waiting) ` : notReady.value?.length ? "(not ready) " : ""}${place ?? "jumptable"} · jumptable`;
  });
  useEffect(() => {
    document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); // a narrow bar scrolls
    if (maps.peek() !== null) document.getElementById("content")?.focus(); // not when the page is opened
  }, [path.join("/")]);

  return html`
    <a class="skip" href="#content" onClick=${(/** @type {Event} */ event) => {
      event.preventDefault();
      document.getElementById("content")?.focus();
    }}>Skip to the content</a>
    <header class="top">
      <a class="brand" href="#/"><img src="/web/icon.svg" alt="" width="20" height="20" /><span>jumptable</span></a>
      ${!isSignedOut &&
      html`<nav aria-label="Views">
        ${VIEWS.map(
          ([each, title]) => html`<a key=${each} href=${link(each ? [each] : [])} aria-current=${each === name || (each === "" && name === "maps") ? "page" : null}>
            ${title}${each === "" && (notReady.value?.length ?? 0) > 0 && html` <span class="badge bad">not ready</span>`}
          </a>`,
        )}
      </nav>
      <span class="status"><${Live} /><${Who} /></span>`}
    </header>
    ${isSignedOut
      ? html`<${SignIn} />`
      : html`<${CutOff} />
          <main id="content" tabindex="-1">
            <${WaitingList} />
            ${index.value === null
              ? html`<${Loading} what="who you are" />`
              : html`<${View} name=${name} path=${path.slice(1)} query=${query} />`}
          </main>`}
    <${Message} />
  `;
}

/** Find out who asks, and begin; again a little later where the service does not answer. */
async function begin() {
  try {
    void Promise.all([loadMaps(), loadReadiness()]).catch(() => {}); // at once: all that the first view waits for
    await loadIndex();
  } catch {
    setTimeout(begin, 2000);
    return;
  }
  if (index.value?.caller) void follow();
  else {
    const stop = index.subscribe((now) => {
      if (now?.caller) {
        queueMicrotask(() => stop());
        void follow();
      }
    });
  }
}

void LOADERS[route.value.path[0] ?? ""]?.().catch(() => {}); // its modules come while it is asked who asks
render(html`<${Page} />`, document.body);
void begin();
poll();
