import { html } from "htm/preact";
export const Objects = () => html``;
