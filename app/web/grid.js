// The entries of a table as a grid. Only the rows that are in sight are in the document.

import { Component, h, html } from "htm/preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { colour, colouring } from "./colours.js";
import { programName } from "./format.js";
import { Icon } from "./parts.js";

/** @typedef {import("./table-data.js").TableData} TableData */
/** @typedef {import("./types.d.ts").Target} Target */

const TILED = 256; // entries at most that are shown with names
const TILE = { width: 92, height: 54, most: 8, header: 0 };
const DENSE = { width: 22, height: 22, most: 64, header: 68 };
const AROUND = 6; // rows beyond those in sight

/**
 * What is said of an entry beside its program.
 *
 * @typedef {{waiting: Set<number>, drift: Set<number>, isLocked: (index: number) => boolean, isHidden: (index: number) => boolean,
 *   draft: ReadonlyMap<number, Target>}} Marks
 * @typedef {{row: number, columns: number, height: number, isTiled: boolean, data: TableData, marks: Marks, cursor: number,
 *   first: number, last: number, stamp: string}} RowProps `stamp` changes with anything that the row shows.
 */

/** @extends {Component<RowProps>} */
class Row extends Component {
  /** @override @param {RowProps} next */
  shouldComponentUpdate(next) {
    const now = this.props;
    return now.row !== next.row || now.stamp !== next.stamp || now.columns !== next.columns || now.data !== next.data;
  }

  /** @override */
  render() {
    const { row, columns, height, isTiled, data, cursor } = this.props;
    const start = row * columns;
    const cells = Array.from({ length: Math.min(columns, data.size - start) }, (_, place) => this.cell(start + place, place));
    return html`<div role="row" aria-rowindex=${row + 1} class="grid-row" style=${{ top: `${row * height}px` }}>
      ${!isTiled && html`<span role="rowheader" class=${start <= cursor && cursor < start + columns ? "here" : ""}>${start}</span>`}
      ${cells}
    </div>`;
  }

  /** @param {number} index @param {number} place */
  cell(index, place) {
    const { isTiled, data, marks, cursor, first, last } = this.props;
    const program = data.entries.get(index) ?? null;
    const target = marks.draft.get(index);
    const [isKnown, isHidden] = [data.isKnown(index), marks.isHidden(index)];
    const name = isHidden ? "hidden" : isKnown ? programName(program) : "not read yet";
    const [waits, drifts, isLocked] = [marks.waiting.has(index), marks.drift.has(index), marks.isLocked(index)];
    let notes = "";
    let look = `cell ${program === null ? "empty" : colour(program)}`;
    if (!isKnown || isHidden) look += " unknown";
    if (index === cursor) look += " cursor";
    if (target !== undefined) {
      notes += `, to become ${target === null ? "empty" : target.label}`;
      look += " edited";
    }
    if (waits) {
      notes += ", waits for a confirmation";
      look += " waits";
    }
    if (drifts) {
      notes += ", is not as journalled";
      look += " drifts";
    }
    if (isLocked) {
      notes += ", you may not change it";
      look += " locked";
    }
    // By the place in its row, as rows are used again for others: without html``, as thousands of cells are scrolled by.
    const common = {
      key: place,
      id: `entry-${index}`,
      "data-index": index,
      role: "gridcell",
      "aria-colindex": place + 1,
      "aria-selected": first <= index && index <= last,
      class: look,
    };
    if (!isTiled) return h("div", { ...common, title: `Entry ${index}: ${name}${notes}` });
    return h(
      "div",
      common,
      html`<span class="index"><span class="hidden">Entry </span>${index}</span>
        <span class="flags">
          ${isLocked && html`<${Icon} name="lock" />`}${waits && html`<${Icon} name="clock" />`}${drifts && html`<${Icon} name="warn" />`}
        </span>
        <span class="of">${target === undefined ? name : target === null ? "empty" : target.label}</span>
        ${notes && html`<span class="hidden">${notes}</span>`}`,
    );
  }
}

/** The columns that fit: a power of two, so that rows begin at round indexes. @param {number} width @param {typeof TILE} shape */
function columnsFor(width, shape) {
  let columns = 2;
  while (columns < shape.most && columns * 2 * shape.width + shape.header <= width) columns *= 2;
  return columns;
}

/**
 * @param {{data: TableData, marks: Marks, cursor: number, first: number, last: number,
 *   onMove: (index: number, extend: boolean) => void, onOpen: () => void}} props
 */
export function Grid({ data, marks, cursor, first, last, onMove, onOpen }) {
  const isTiled = data.size <= TILED;
  const shape = isTiled ? TILE : DENSE;
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const [width, setWidth] = useState(0);
  const [scroll, setScroll] = useState({ top: 0, height: 0 });
  const columns = Math.min(columnsFor(width, shape), data.size);
  const rows = Math.ceil(data.size / columns);
  const firstRow = Math.max(0, Math.floor(scroll.top / shape.height) - AROUND);
  const lastRow = Math.min(rows - 1, Math.ceil((scroll.top + scroll.height) / shape.height) + AROUND);

  useLayoutEffect(() => {
    const element = /** @type {HTMLElement} */ (box.current);
    const measure = () => {
      setWidth(element.clientWidth);
      setScroll({ top: element.scrollTop, height: element.clientHeight });
    };
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    if (width) data.look(firstRow * columns, (lastRow + 1) * columns - 1);
  }, [data, width, firstRow, lastRow, columns]);
  useLayoutEffect(() => {
    const element = box.current;
    if (!element || !width) return;
    const top = Math.floor(cursor / columns) * shape.height;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + shape.height > element.scrollTop + element.clientHeight)
      element.scrollTop = top + shape.height - element.clientHeight;
  }, [cursor, columns, width > 0]);

  /** @param {KeyboardEvent} event */
  function onKeyDown(event) {
    const page = Math.max(1, Math.floor(scroll.height / shape.height) - 1) * columns;
    const column = cursor % columns;
    /** @type {Record<string, number>} */
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
      Home: event.ctrlKey ? -cursor : -column,
      End: event.ctrlKey ? data.size : columns - 1 - column,
    };
    const step = steps[event.key];
    if (step !== undefined) onMove(Math.max(0, Math.min(data.size - 1, cursor + step)), event.shiftKey);
    else if (event.key === "Enter" || event.key === " ") onOpen();
    else return;
    event.preventDefault();
  }

  /** @param {MouseEvent} event */
  function onClick(event) {
    const cell = event.target instanceof Element ? event.target.closest("[data-index]") : null;
    if (cell instanceof HTMLElement) onMove(Number(cell.dataset["index"]), event.shiftKey);
  }

  const revision = data.revision.value + colouring.value;
  const shown = [];
  const period = Math.ceil(scroll.height / shape.height) + 2 * AROUND + 2; // rows that leave are used again for those that come
  for (let row = firstRow; width && row <= lastRow; row++) {
    const [start, end] = [row * columns, (row + 1) * columns - 1];
    const selection = first <= end && start <= last ? `${first}-${last}-${cursor}` : "";
    const stamp = `${revision}/${selection}/${markStamp(marks, start, end)}`;
    shown.push(html`<${Row} key=${row % period} row=${row} columns=${columns} height=${shape.height} isTiled=${isTiled} data=${data}
      marks=${marks} cursor=${cursor} first=${first} last=${last} stamp=${stamp} />`);
  }
  return html`<div
    class=${`grid ${isTiled ? "tiled" : "dense"} c${columns}`}
    ref=${box}
    role="grid"
    tabindex="0"
    aria-label=${`Entries of ${data.map}`}
    aria-rowcount=${rows}
    aria-colcount=${columns}
    aria-multiselectable="true"
    aria-activedescendant=${`entry-${cursor}`}
    onScroll=${() => box.current && setScroll({ top: box.current.scrollTop, height: box.current.clientHeight })}
    onKeyDown=${onKeyDown}
    onClick=${onClick}
  >
    <div class="grid-all" role="presentation" style=${{ height: `${rows * shape.height}px` }}>${shown}</div>
  </div>`;
}

/** What changes when the marks of a row do. @param {Marks} marks @param {number} start @param {number} end */
function markStamp(marks, start, end) {
  let stamp = marks.isLocked(start) ? "l" : "";
  for (let index = start; index <= end; index++) {
    if (marks.draft.has(index)) stamp += `d${index}${marks.draft.get(index)?.label ?? ""}`;
    if (marks.waiting.has(index)) stamp += `w${index}`;
    if (marks.drift.has(index)) stamp += `x${index}`;
  }
  return stamp;
}
