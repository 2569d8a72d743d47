// Signing in: the token stays in memory, in sessionStorage only on request, and is never in an address.

import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { askForToken, get, useToken } from "./api.js";
import { reconnect } from "./live.js";
import { index } from "./session.js";

/** @param {{command: string}} props `command`: what makes a token. */
export function SignIn({ command }) {
  const [secret, setSecret] = useState("");
  const [keep, setKeep] = useState(false);
  const [refused, setRefused] = useState("");
  const isAsked = askForToken.value;

  /** @param {Event} event */
  async function submit(event) {
    event.preventDefault();
    useToken(secret.trim(), keep);
    try {
      const found = await get("/");
      if (found.caller === null) throw new Error("the token is unknown, revoked or expired");
      index.value = found;
      askForToken.value = null;
      reconnect();
    } catch (error) {
      useToken(null, false);
      setRefused(error instanceof Error ? error.message : String(error));
    }
  }

  return html`<main id="content" class="sign-in" tabindex="-1">
    <form class="card stack" onSubmit=${submit}>
      <h1>Sign in</h1>
      <p class="muted">
        This service knows its callers by tokens. An operator makes one with <code>${command}</code>.
      </p>
      ${refused ? html`<p class="note bad" role="alert">${refused}</p>` : isAsked && html`<p class="note warn">${isAsked}</p>`}
      <label>
        <span>Token</span>
        <input
          name="token"
          type="password"
          autocomplete="off"
          required
          spellcheck="false"
          value=${secret}
          onInput=${(/** @type {any} */ event) => setSecret(event.target.value)}
        />
      </label>
      <label class="check">
        <input type="checkbox" name="keep" checked=${keep} onChange=${(/** @type {any} */ event) => setKeep(event.target.checked)} />
        <span>Keep it until this tab is closed. Otherwise it is forgotten when the page is loaded again.</span>
      </label>
      <footer><button class="primary">Sign in</button></footer>
    </form>
  </main>`;
}
