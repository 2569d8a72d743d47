// The colours of programs.

import { signal } from "@preact/signals";

const HUES = 12;
const COLOURS = 2 * HUES; // each hue in a light and in a deep tone
/** The place of each program in the palette, by name. */
const places = new Map(/** @type {[string, number][]} */ ([]));

/** Rises when programs get other colours. */
export const colouring = signal(0);

/**
 * The place that follows from a name. Two names get the same only where there are more of them than colours.
 *
 * @param {string} name
 */
function placeOf(name) {
  let place = places.get(name);
  if (place === undefined) {
    place = [...name].reduce((sum, each) => (sum * 31 + (each.codePointAt(0) ?? 0)) % 9973, 7) % COLOURS;
    const taken = new Set(places.values());
    while (taken.size < COLOURS && taken.has(place)) place = (place + 1) % COLOURS;
    places.set(name, place);
  }
  return place;
}

/**
 * Give colours to the held programs: everybody who opens the page sees the same.
 *
 * @param {string[]} names
 * @param {boolean} isFirst The programs were not known before.
 */
export function giveColours(names, isFirst) {
  if (isFirst && places.size > 0) {
    places.clear(); // what was shown before had them in the order in which it came
    colouring.value += 1;
  }
  for (const name of names.toSorted()) placeOf(name);
}

/**
 * The class with the colour of a program: the same one wherever it is shown.
 *
 * @param {{name: string | null, id: number | null} | null} program
 */
export function colour(program) {
  if (program === null) return "";
  if (program.name === null) return "other";
  colouring.value; // whoever shows a colour is drawn again when it is another one
  const place = placeOf(program.name);
  return `hue p${place % HUES}${place < HUES ? "" : " deep"}`;
}
