// What stands around every view of a page: the header, what went wrong, signing in, and which view is shown.

import { html, render } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { askForToken, hasToken, useToken } from "./api.js";
import { duration } from "./format.js";
import { follow, live, reconnect } from "./live.js";
import { Icon, Loading } from "./parts.js";
import { link, route } from "./route.js";
import { index, loadIndex, message, second } from "./session.js";
import { SignIn } from "./sign-in.js";

/**
 * A page.
 *
 * - `name`: stands above it. `token`: the command that makes a token.
 * - `views`: the first part of the path of each view, and its title. That of the first view is "".
 * - `parents`: views that are reached from another one, and from which.
 * - `first`: the first view. `loaders`: the modules of the others, which are loaded when they are opened.
 * - `above`: stands above every view. `flag`: stands before the title of the tab. `badge`: stands beside the first view.
 * - `early`: begins to read what the first view waits for. `stream`: the events.
 *
 * @typedef {{
 *   name: string, token: string, views: readonly (readonly [string, string])[], parents: Record<string, string>, first: any,
 *   loaders: Record<string, () => Promise<any>>, above?: any, flag: () => string, badge?: () => string, early: () => Promise<any>,
 *   stream: import("./live.js").Stream
 * }} Application
 */

/** A view whose files the service did not give: it is away, or another version by now. */
const Unloaded = () => html`<p class="note bad" role="alert">The view cannot be loaded. Load the page again when the service is there.</p>`;

/** @param {{application: Application, name: string, path: string[], query: URLSearchParams}} props */
function View({ application, name, path, query }) {
  const [loaded, setLoaded] = useState(/** @type {Record<string, any>} */ ({}));
  const load = application.loaders[name];
  useEffect(() => {
    if (load && !loaded[name])
      void load().then(
        (found) => setLoaded((all) => ({ ...all, [name]: found.View })),
        () => setLoaded((all) => ({ ...all, [name]: Unloaded })),
      );
  }, [name]);
  if (name === "") return html`<${application.first} />`;
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

/** The title of the tab. @param {{application: Application, name: string, path: string[]}} props */
function Title({ application, name, path }) {
  const place = path[1] ?? application.views.find(([each]) => each === name)?.[1];
  const title = `${application.flag()}${place ?? application.name} · ${application.name}`;
  useEffect(() => void (document.title = title), [title]);
  return null;
}

/** @param {{application: Application}} props */
function Page({ application }) {
  const { path, query } = route.value;
  const [first = "", ...rest] = path;
  const name = rest.length ? first : (application.parents[first] ?? first); // #/maps is where the maps are
  const isSignedOut = index.value !== null && (index.value.caller === null || askForToken.value !== null);

  const badge = application.badge?.() ?? "";

  const isOpen = useRef(false);
  useEffect(() => {
    document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); // a narrow bar scrolls
    if (isOpen.current) document.getElementById("content")?.focus(); // not when the page is opened
    isOpen.current = true;
  }, [path.join("/")]);

  return html`
    <${Title} application=${application} name=${name} path=${path} />
    <a class="skip" href="#content" onClick=${(/** @type {Event} */ event) => {
      event.preventDefault();
      document.getElementById("content")?.focus();
    }}>Skip to the content</a>
    <header class="top">
      <a class="brand" href="#/"><img src="/web/icon.svg" alt="" width="20" height="20" /><span>${application.name}</span></a>
      ${!isSignedOut &&
      html`<nav aria-label="Views">
        ${application.views.map(
          ([each, title]) =>
            html`<a key=${each} href=${link(each ? [each] : [])} aria-current=${each === (application.parents[name] ?? name) ? "page" : null}>
              ${title}${each === "" && badge && html` <span class="badge bad">${badge}</span>`}
            </a>`,
        )}
      </nav>
      <span class="status"><${Live} /><${Who} /></span>`}
    </header>
    ${isSignedOut
      ? html`<${SignIn} command=${application.token} />`
      : html`<${CutOff} />
          <main id="content" tabindex="-1">
            ${application.above && html`<${application.above} />`}
            ${index.value === null
              ? html`<${Loading} what="who you are" />`
              : html`<${View} application=${application} name=${name} path=${rest} query=${query} />`}
          </main>`}
    <${Message} />
  `;
}

/** Find out who asks, and begin; again a little later where the service does not answer. @param {Application} application */
async function begin(application) {
  try {
    void application.early().catch(() => {}); // at once: all that the first view waits for
    await loadIndex();
  } catch {
    setTimeout(() => void begin(application), 2000);
    return;
  }
  if (index.value?.caller) void follow(application.stream);
  else {
    const stop = index.subscribe((now) => {
      if (now?.caller) {
        queueMicrotask(() => stop());
        void follow(application.stream);
      }
    });
  }
}

/** Show a page. @param {Application} application */
export function show(application) {
  void application.loaders[route.value.path[0] ?? ""]?.().catch(() => {}); // its modules come while it is asked who asks
  render(html`<${Page} application=${application} />`, document.body);
  void begin(application);
}
