// The colours of programs.

const HUES = 12;
const COLOURS = 2 * HUES; // each hue in a light and in a deep tone
/** The place of each program in the palette, by name. */
const places = new Map(/** @type {[string, number][]} */ ([]));

/**
 * The class with the colour of a program: the same one wherever it is shown.
 *
 * It follows from the name, and two programs get the same only where there are more of them than colours.
 *
 * @param {{name: string | null, id: number | null} | null} program
 */
export function colour(program) {
  if (program === null) return "";
  if (program.name === null) return "other";
  let place = places.get(program.name);
  if (place === undefined) {
    place = [...program.name].reduce((sum, each) => (sum * 31 + (each.codePointAt(0) ?? 0)) % 9973, 7) % COLOURS;
    const taken = new Set(places.values());
    while (taken.size < COLOURS && taken.has(place)) place = (place + 1) % COLOURS;
    places.set(program.name, place);
  }
  return `hue p${place % HUES}${place < HUES ? "" : " deep"}`;
}
