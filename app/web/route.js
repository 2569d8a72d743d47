// Where the page is: the part of the address behind #, as in #/maps/jump_table?entry=3.

import { computed, signal } from "@preact/signals";

const hash = signal(location.hash);
addEventListener("hashchange", () => (hash.value = location.hash));

/** The path in parts, decoded, and the query. */
export const route = computed(() => {
  const [path = "", query = ""] = hash.value.replace(/^#\/?/, "").split("?", 2);
  return { path: path.split("/").filter(Boolean).map(decode), query: new URLSearchParams(query) };
});

/** @param {string} part */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/**
 * The address of a view.
 *
 * @param {string[]} path
 * @param {Record<string, string | number | null | undefined>} [query] Members that are null or "" are left out.
 */
export function link(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return `#/${path.map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
}

/** Go to a view; with `replace`, without a step in the history. @param {string} to @param {boolean} [replace] */
export function go(to, replace = false) {
  if (replace) {
    history.replaceState(null, "", to);
    hash.value = to;
  } else {
    location.hash = to;
  }
}
