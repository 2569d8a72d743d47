import { html } from "htm/preact"; export const View = () => html`<h1>x</h1>`;
