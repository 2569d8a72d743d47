// What the API of the fleet answers, as far as the page reads it. /openapi.json is the exact document.

export type Phase = "progressing" | "paused" | "halted" | "rolling_back" | "complete" | "rolled_back" | "rollback_failed";

export interface Table {
  table: string;
  revision: number;
  selector: { match: Record<string, string> };
  range: string;
  by: string;
  at: string;
  note: string;
  etag: string;
  rollout: string | null;
}

export interface Run {
  first: number;
  last: number;
  program: { name: string; tags: string[] };
}

export interface Strategy {
  waves: (number | string)[];
  max_unavailable: number;
  bake_seconds: number;
  confirm_within: number;
  deadline: number;
  on_failure: "rollback" | "halt";
  checks: {
    program: string | null;
    returned: number | null;
    metric: string | null;
    at_least: number | null;
    at_most: number | null;
  }[];
}

export interface Revision {
  table: string;
  revision: number;
  selector: { match: Record<string, string> };
  range: string;
  runs: Run[];
  strategy: Strategy;
  by: string;
  at: string;
  note: string;
  same_as: number | null;
}

export interface RolloutSummary {
  id: string;
  table: string;
  revision: number;
  phase: Phase;
  wave: number;
  since: string;
  by: string;
  reason: string;
}

export interface Rollout extends RolloutSummary {
  waves: { size: number; states: Record<string, number> }[];
  states: Record<string, number>;
  away: number;
  failures: { node: string; state: string; code: string | null; detail: string }[];
  history: { at: string; by: string; phase: Phase; wave: number; reason: string }[];
}

export interface RolloutNode {
  node: string;
  wave: number;
  state: string;
  alive: boolean;
  code: string | null;
  detail: string;
  change: number | null;
}

export interface NodeTable {
  table: string;
  revision: number | null;
  wanted: number | null;
  state: string | null;
  code: string | null;
  detail: string;
  change: number | null;
  indexes: number[];
  at: string | null;
}

export interface NodeFacts {
  version: string;
  kernel: string;
  ready: boolean;
  detail: string;
  maps: { name: string; max_entries: number; ranges: string[] | null }[];
  at: string;
}

export interface Node {
  node: string;
  labels: Record<string, string>;
  user: string;
  by: string;
  at: string;
  state: "ready" | "away" | "unready" | "changing" | "failed";
  alive: boolean;
  since: string | null;
  facts: NodeFacts | null;
  tables: NodeTable[];
}

export interface Action {
  at: string;
  by: string;
  what: "rollout" | "table_deleted" | "node" | "node_deleted";
  table: string | null;
  revision: number | null;
  rollout: string | null;
  phase: Phase | null;
  wave: number | null;
  node: string | null;
  note: string;
}

export interface DryRun {
  revision: number;
  waves: string[][];
  nodes: { node: string; answer: "accepts" | "refuses" | "away" | "silent"; detail: string }[];
  accepts: number;
  refuses: number;
  away: number;
  silent: number;
  changed: number;
}
