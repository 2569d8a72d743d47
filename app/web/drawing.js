// A part of the graph as a picture: laid out by dagre, moved and zoomed by mouse, touch and keys.

import * as dagre from "@dagrejs/dagre";
import { html } from "htm/preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { colour } from "./colours.js";
import { count, ranges } from "./format.js";
import { nodeName } from "./graph-data.js";
import { Icon } from "./parts.js";
import { link } from "./route.js";

/** @typedef {import("./types.d.ts").Graph} Graph */
/** @typedef {{key: string, kind: "attachment" | "program" | "array" | "gap", title: string, detail: string, look: string,
 *   href: string | null, x: number, y: number, width: number, height: number}} Node */
/** @typedef {{from: string, to: string, label: string, look: string, x: number, y: number, points: {x: number, y: number}[]}} Line */

const HEIGHT = { attachment: 30, program: 40, array: 44, gap: 26 };
const CHAR_PX = 8;
const LABEL_PX = 6.4;
const MOST_ZOOM = 3;
const MOST_FIT = 1.25; // a small graph is not blown up
const LEGIBLE = 0.75; // below this zoom the other direction is tried
const MOST_HEIGHT = 0.66; // of the window, as in style.css
const STEP_PX = 60;
const GAPS = 12; // empty entries that are drawn one by one for each array

/** @typedef {{nodes: Node[], lines: Line[], width: number, height: number}} Layout */

/** How large a layout can be shown. @param {Layout} layout @param {number} width @param {number} height */
const zoomOf = (layout, width, height) => Math.min(MOST_FIT, width / layout.width, height / layout.height);

/**
 * Lay out a part of the graph, in the direction in which it can be shown larger.
 *
 * @param {Graph} graph
 * @param {number} width Of the box, in pixels.
 */
function bestLayout(graph, width) {
  const height = MOST_HEIGHT * innerHeight;
  const across = layOut(graph, "LR");
  if (zoomOf(across, width, height) >= LEGIBLE) return across;
  const down = layOut(graph, "TB");
  return zoomOf(down, width, height) > zoomOf(across, width, height) ? down : across;
}

/** Lay out a part of the graph. @param {Graph} graph @param {"LR" | "TB"} rankdir @returns {Layout} */
function layOut(graph, rankdir) {
  /** @type {Map<string, Omit<Node, "x" | "y">>} */
  const nodes = new Map();
  /** @type {{from: string, to: string, label: string, look: string}[]} */
  const lines = [];
  const inChain = new Set(graph.longest_chain && isLong(graph.longest_chain) ? graph.longest_chain.programs : []);
  /** @param {string} key @param {Node["kind"]} kind @param {string} title @param {string} detail @param {string} look @param {string | null} href */
  const add = (key, kind, title, detail, look, href) => {
    const width = Math.max(title.length * CHAR_PX, detail.length * LABEL_PX) + 28;
    nodes.set(key, { key, kind, title, detail, look, href, width: Math.min(260, Math.max(64, width)), height: HEIGHT[kind] });
  };
  for (const each of graph.programs) {
    const notes = [each.type, each.reached === "never" && "never reached", each.code === "hidden" && "code hidden"].filter(Boolean);
    const look = [colour({ name: each.name, id: each.id }), each.reached === "never" && "unreached", inChain.has(each.id) && "long"];
    add(`p${each.id}`, "program", nodeName(each), notes.join(", "), look.filter(Boolean).join(" "), each.name === null ? null : link(["programs"]));
  }
  for (const each of graph.arrays) {
    const used = each.used === null ? "not readable" : `${count(each.used)} of ${count(each.max_entries)} used`;
    add(`a${each.id}`, "array", nodeName(each), used, "", each.name === null ? null : link(["maps", each.name]));
    /** @type {Map<number, number[]>} */
    const targets = new Map();
    for (const { index, program } of each.entries ?? []) {
      const known = targets.get(program);
      if (known) known.push(index);
      else targets.set(program, [index]);
    }
    for (const [program, indexes] of targets) lines.push({ from: `a${each.id}`, to: `p${program}`, label: ranges(indexes, 3), look: "" });
  }
  for (const each of graph.attachments) {
    const key = `t${each.kind}/${each.where}/${each.namespace}/${each.attach_type}`;
    add(key, "attachment", `${each.kind}${each.where ? ` ${each.where}` : ""}`, "", "", null);
    lines.push({ from: key, to: `p${each.program}`, label: "", look: "" });
  }
  for (const each of graph.edges)
    lines.push({
      from: `p${each.program}`,
      to: `a${each.array}`,
      label: each.indexes === null ? "any" : ranges(each.indexes, 3),
      look: each.certain ? "" : "uncertain",
    });
  /** @type {Map<string, number>} */
  const gaps = new Map();
  for (const each of graph.empty_jumps) {
    const key = `g${each.array}/${each.index}`;
    const array = graph.arrays.find((one) => one.id === each.array);
    const drawn = gaps.get(`a${each.array}`) ?? 0;
    if (nodes.has(key) || drawn >= GAPS) continue;
    gaps.set(`a${each.array}`, drawn + 1);
    const title = each.reason === "empty" ? `${each.index} is empty` : `${each.index} is beyond the end`;
    add(key, "gap", title, "", "", array?.name ? link(["maps", array.name], { entry: each.index }) : null);
    lines.push({ from: `a${each.array}`, to: key, label: "", look: "wrong" });
  }

  const layout = new dagre.Graph({ multigraph: true });
  layout.setGraph({ rankdir, nodesep: 18, ranksep: 56, edgesep: 10, marginx: 16, marginy: 16 });
  layout.setDefaultEdgeLabel(() => ({}));
  for (const node of nodes.values()) layout.setNode(node.key, { width: node.width, height: node.height });
  lines.forEach((line, number) => {
    if (nodes.has(line.from) && nodes.has(line.to))
      layout.setEdge(line.from, line.to, { width: line.label.length * LABEL_PX, height: line.label ? 14 : 0, labelpos: "c" }, String(number));
  });
  dagre.layout(layout);
  const size = /** @type {{width?: number, height?: number}} */ (layout.graph());
  return {
    nodes: [...nodes.values()].map((node) => ({ ...node, .../** @type {{x: number, y: number}} */ (pick(layout.node(node.key))) })),
    lines: lines.flatMap((line, number) => {
      const edge = /** @type {any} */ (layout.edge(line.from, line.to, String(number)));
      return edge ? [{ ...line, x: edge.x ?? 0, y: edge.y ?? 0, points: edge.points }] : [];
    }),
    width: size.width ?? 100,
    height: size.height ?? 100,
  };
}

/** @param {any} node */
const pick = ({ x, y }) => ({ x, y });

/** Whether a chain comes near what the kernel allows. @param {NonNullable<Graph["longest_chain"]>} chain */
export const isLong = (chain) => chain.exceeds_limit || chain.jumps >= chain.limit - 3;

/** A smooth way through points. @param {{x: number, y: number}[]} points */
function path(points) {
  const [first, ...rest] = points;
  if (!first) return "";
  let way = `M${first.x},${first.y}`;
  for (let number = 0; number < rest.length - 1; number++) {
    const [here, next] = [/** @type {any} */ (rest[number]), /** @type {any} */ (rest[number + 1])];
    way += `Q${here.x},${here.y} ${number === rest.length - 2 ? `${next.x},${next.y}` : `${(here.x + next.x) / 2},${(here.y + next.y) / 2}`}`;
  }
  return rest.length === 1 ? `${way}L${rest[0]?.x},${rest[0]?.y}` : way;
}

/** @param {{node: Node}} props */
function Box({ node }) {
  const round = node.kind === "attachment" || node.kind === "gap" ? node.height / 2 : node.kind === "program" ? 5 : 2;
  const middle = node.width / 2 + (node.kind === "array" ? 6 : node.kind === "program" ? 3 : 0);
  const box = html`<g class=${`node ${node.kind} ${node.look}`} transform=${`translate(${node.x - node.width / 2},${node.y - node.height / 2})`}>
    <rect width=${node.width} height=${node.height} rx=${round} />
    ${node.kind === "program" && html`<path class="band" d=${`M4,1.5v${node.height - 3}`} />`}
    ${node.kind === "array" && html`<path class="ruler" d=${`M10,4v${node.height - 8}`} />`}
    <text x=${middle} y=${node.detail ? node.height / 2 - 4 : node.height / 2 + 4} class="title">${node.title}</text>
    ${node.detail && html`<text x=${middle} y=${node.height / 2 + 12} class="detail">${node.detail}</text>`}
  </g>`;
  return node.href === null ? box : html`<a href=${node.href}>${box}</a>`;
}

/** @param {{graph: Graph}} props */
export function Drawing({ graph }) {
  const box = useRef(/** @type {SVGSVGElement | null} */ (null));
  const [width, setWidth] = useState(0);
  const picture = useMemo(() => bestLayout(graph, width || innerWidth), [graph, width]);
  const [view, setView] = useState({ x: 0, y: 0, zoom: 1 });
  const pointers = useRef(/** @type {Map<number, {x: number, y: number}>} */ (new Map()));
  const hasMoved = useRef(false);

  function fit() {
    const { clientWidth: width, clientHeight: height } = /** @type {SVGSVGElement} */ (box.current);
    const zoom = zoomOf(picture, width, height);
    isTouched.current = false;
    setView({ zoom, x: (width - picture.width * zoom) / 2, y: (height - picture.height * zoom) / 2 });
  }
  const isTouched = useRef(false); // then it stays where the user has moved it
  useLayoutEffect(() => setWidth(box.current?.clientWidth ?? 0), []);
  useLayoutEffect(() => {
    if (!isTouched.current) fit();
  }, [picture]);

  /** Zoom around a place of the box. @param {number} factor @param {number} [x] @param {number} [y] */
  function zoomBy(factor, x = (box.current?.clientWidth ?? 0) / 2, y = (box.current?.clientHeight ?? 0) / 2) {
    isTouched.current = true;
    setView((now) => {
      const zoom = Math.min(MOST_ZOOM, Math.max(0.05, now.zoom * factor));
      const by = zoom / now.zoom;
      return { zoom, x: x - (x - now.x) * by, y: y - (y - now.y) * by };
    });
  }
  /** @param {number} x @param {number} y */
  function move(x, y) {
    isTouched.current = true;
    setView((now) => ({ ...now, x: now.x + x, y: now.y + y }));
  }

  useLayoutEffect(() => {
    // Not as an attribute: a passive listener could not keep the page from scrolling.
    const element = /** @type {SVGSVGElement} */ (box.current);
    const onWheel = (/** @type {WheelEvent} */ event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== element) return;
      event.preventDefault();
      const corner = element.getBoundingClientRect();
      zoomBy(Math.exp(-event.deltaY / 300), event.clientX - corner.left, event.clientY - corner.top);
    };
    element.addEventListener("wheel", onWheel, { passive: false });
    return () => element.removeEventListener("wheel", onWheel);
  }, []);

  /** @param {PointerEvent} event */
  function onPointerDown(event) {
    hasMoved.current = false;
    pointers.current.set(event.pointerId, { x: event.clientX, y: event.clientY });
  }
  /** @param {PointerEvent} event */
  function onPointerMove(event) {
    const before = pointers.current.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const other = [...pointers.current].find(([id]) => id !== event.pointerId)?.[1];
    if (!hasMoved.current && Math.hypot(now.x - before.x, now.y - before.y) < 4) return;
    if (!hasMoved.current) box.current?.setPointerCapture(event.pointerId);
    hasMoved.current = true;
    pointers.current.set(event.pointerId, now);
    if (other) {
      const corner = /** @type {SVGSVGElement} */ (box.current).getBoundingClientRect();
      const factor = Math.hypot(now.x - other.x, now.y - other.y) / (Math.hypot(before.x - other.x, before.y - other.y) || 1);
      zoomBy(factor, (now.x + other.x) / 2 - corner.left, (now.y + other.y) / 2 - corner.top);
    } else move(now.x - before.x, now.y - before.y);
  }
  /** @param {PointerEvent} event */
  const onPointerUp = (event) => void pointers.current.delete(event.pointerId);

  /** @param {KeyboardEvent} event */
  function onKeyDown(event) {
    /** @type {Record<string, () => void>} */
    const actions = {
      ArrowLeft: () => move(STEP_PX, 0), ArrowRight: () => move(-STEP_PX, 0), ArrowUp: () => move(0, STEP_PX), ArrowDown: () => move(0, -STEP_PX),
      "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), 0: fit,
    };
    const action = actions[event.key];
    if (!action) return;
    action();
    event.preventDefault();
  }

  return html`<div class="drawing">
    <svg
      ref=${box}
      class="graph"
      style=${{ height: `${Math.max(200, picture.height * zoomOf(picture, width || innerWidth, Infinity))}px` }}
      tabindex="0"
      role="group"
      aria-label="The jump graph. Arrows move it, plus and minus zoom, 0 fits it in. The list below says the same."
      onPointerDown=${onPointerDown}
      onPointerMove=${onPointerMove}
      onPointerUp=${onPointerUp}
      onPointerCancel=${onPointerUp}
      onClickCapture=${(/** @type {Event} */ event) => hasMoved.current && event.preventDefault()}
      onDragStart=${(/** @type {Event} */ event) => event.preventDefault()}
      onKeyDown=${onKeyDown}
    >
      <defs>
        <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0,0.5 7.5,4 0,7.5z" /></marker>
      </defs>
      <g transform=${`translate(${view.x},${view.y}) scale(${view.zoom})`}>
        ${picture.lines.map(
          (line, number) => html`<g key=${number} class=${`line ${line.look}`}>
            <path d=${path(line.points)} marker-end="url(#tip)" />
            ${line.label &&
            html`<rect x=${line.x - (line.label.length * LABEL_PX) / 2 - 3} y=${line.y - 8} width=${line.label.length * LABEL_PX + 6} height="16" />
              <text x=${line.x} y=${line.y + 4}>${line.label}</text>`}
          </g>`,
        )}
        ${picture.nodes.map((node) => html`<${Box} key=${node.key} node=${node} />`)}
      </g>
    </svg>
    <span class="buttons zoom">
      <button type="button" aria-label="Zoom in" onClick=${() => zoomBy(1.25)}><${Icon} name="plus" /></button>
      <button type="button" aria-label="Zoom out" onClick=${() => zoomBy(0.8)}><${Icon} name="minus" /></button>
      <button type="button" aria-label="Fit it in" onClick=${fit}><${Icon} name="fit" /></button>
    </span>
  </div>`;
}
