// The page of the fleet.

import { show } from "../frame.js";
import { Overview } from "./overview.js";
import { loadAll, loadReadiness, poll, readiness, takeEvent } from "./state.js";

/** What the tab tells to somebody who looks at another one. */
const flag = () => (readiness.value !== null && readiness.value.problem !== null ? "(no etcd) " : "");

show({
  name: "jumptable fleet",
  token: "jumptable fleet token new NAME --role reader",
  views: [
    ["", "Overview"],
    ["rollouts", "Rollouts"],
    ["nodes", "Nodes"],
    ["history", "History"],
  ],
  parents: { tables: "" },
  first: Overview,
  loaders: {
    tables: () => import("./table.js"),
    rollouts: () => import("./rollouts.js"),
    nodes: () => import("./nodes.js"),
    history: () => import("./history.js"),
  },
  flag,
  early: loadReadiness,
  stream: { path: "/fleet/events", load: loadAll, take: takeEvent },
});
poll();
