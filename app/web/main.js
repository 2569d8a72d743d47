// The page of a node.

import { show } from "./frame.js";
import { Overview } from "./overview.js";
import { loadAll, loadMaps, loadReadiness, maps, notReady, poll, takeEvent } from "./state.js";
import { WaitingList } from "./waiting.js";

/** What the tab tells to somebody who looks at another one. */
function flag() {
  const waiting = (maps.value ?? []).reduce((sum, each) => sum + each.waiting.length, 0);
  return waiting ? `(${waiting} waiting) ` : notReady.value?.length ? "(not ready) " : "";
}

show({
  name: "jumptable",
  token: "jumptable token new NAME --role reader",
  views: [
    ["", "Overview"],
    ["changes", "Changes"],
    ["graph", "Graph"],
    ["programs", "Programs"],
    ["objects", "Objects"],
    ["packet", "Packet"],
  ],
  parents: { maps: "" },
  first: Overview,
  loaders: {
    maps: () => import("./table.js"),
    changes: () => import("./changes.js"),
    graph: () => import("./graph.js"),
    programs: () => import("./programs.js"),
    objects: () => import("./objects.js"),
    packet: () => import("./packet.js"),
  },
  above: WaitingList,
  flag,
  badge: () => ((notReady.value?.length ?? 0) > 0 ? "not ready" : ""),
  early: () => Promise.all([loadMaps(), loadReadiness()]),
  stream: { path: "/events", load: loadAll, take: takeEvent },
});
poll();
