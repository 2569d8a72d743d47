// Times, numbers and names as people read them.

const UNITS = /** @type {const} */ ([[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]);

/** Seconds as "3 min" or, with two units, "3 min 20 s". @param {number} seconds @param {number} [units] */
export function duration(seconds, units = 1) {
  let left = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [size, name] of UNITS) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count || (parts.length === 0 && size === 1)) parts.push(`${count} ${name}`);
    else if (parts.length) break;
    if (parts.length === units) break;
  }
  return parts.join(" ");
}

/** @param {number} number */
export const count = (number) => number.toLocaleString("en");

/** "1 entry", "2 entries". @param {number} number @param {string} one @param {string} many */
export const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

/** @param {string} at RFC 3339 */
export const clock = (at) => new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** @param {number} nanoseconds */
export function nanos(nanoseconds) {
  if (nanoseconds < 1000) return `${nanoseconds} ns`;
  return nanoseconds < 1e6 ? `${(nanoseconds / 1000).toFixed(1)} µs` : `${(nanoseconds / 1e6).toFixed(1)} ms`;
}

/** @param {number} bytes */
export function bytes(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1 << 20 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

/** The name of a program, or its id where it has none. @param {{name: string | null, id: number | null, kernel_name?: string | null} | null} program */
export function programName(program) {
  if (program === null) return "empty";
  return program.name ?? (program.kernel_name ? `${program.kernel_name} #${program.id}` : `#${program.id ?? "gone"}`);
}

/** Indexes as ranges: "3, 8–15". @param {number[]} indexes Rising. @param {number} [most] Ranges that are shown. */
export function ranges(indexes, most = 4) {
  /** @type {[number, number][]} */
  const found = [];
  for (const index of indexes) {
    const last = found.at(-1);
    if (last && last[1] === index - 1) last[1] = index;
    else found.push([index, index]);
  }
  const shown = found.slice(0, most).map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`));
  return shown.join(", ") + (found.length > most ? " …" : "");
}
