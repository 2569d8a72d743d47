// What the HTTP API answers, as far as the page reads it. /openapi.json is the exact document.

export interface ProgramRef {
  name: string | null;
  id: number | null;
  tag: string | null;
  pinned: string | null;
}

export interface EntryProgram {
  name: string | null;
  id: number;
  type: string | null;
  tag: string | null;
  kernel_name: string | null;
  loaded_at: string | null;
}

export interface Waiting {
  change: number;
  confirm_by: string;
}

export interface Entry {
  map: string;
  index: number;
  program: EntryProgram;
  waiting: Waiting | null;
}

export interface Entries {
  max_entries: number;
  etag: string;
  entries: Entry[];
  next: number | null;
}

export interface ChangedEntry {
  index: number;
  before: ProgramRef | null;
  after: ProgramRef | null;
}

export interface Change {
  id: number;
  at: string;
  actor: string;
  request_id: string;
  note: string | null;
  map: string;
  kind: string;
  /** Of a list, the first ones. */
  entries: ChangedEntry[];
  entry_count: number;
  confirm_by: string | null;
  confirmed_by: string | null;
  confirmed_at: string | null;
  state: "applied" | "unconfirmed" | "confirmed" | "reverted" | "expired";
  reverts: number | null;
}

export interface Applied {
  change: Change | null;
  set: number;
  cleared: number;
  unchanged: number;
  fit?: "tried" | "type-only";
  entries?: ChangedEntry[];
  warnings?: string[];
}

export interface Drift {
  index: number;
  journal: ProgramRef | null;
  kernel: ProgramRef | null;
}

export interface HeldMap {
  name: string;
  id: number | null;
  kernel_name: string | null;
  max_entries: number | null;
  used: number | null;
  memlock: number | null;
  frozen: boolean | null;
  owner: { program_type: string; jited: boolean | null } | null;
  pins: string[];
  protected: string[];
  state: "held" | "unavailable";
  reason: string | null;
  drift: Drift[];
  waiting: (Waiting & { entries: number[] })[];
  warnings: string[];
}

export interface Program {
  name: string;
  id: number | null;
  type: string | null;
  tag: string | null;
  kernel_name: string | null;
  loaded_at: string | null;
  run_count: number | null;
  run_time_ns: number | null;
  state: "held" | "unavailable";
  reason: string | null;
  used_by: { map: string; index: number }[];
  use_count: number;
  pins: string[];
  warnings: string[];
}

export interface Caller {
  actor: string;
  role: "reader" | "writer" | "admin" | "metrics" | null;
  /** To a node. */
  maps?: string[] | null;
  entries: string[] | null;
  programs: string[] | null;
  /** To a fleet, as are labels. */
  tables?: string[] | null;
  labels?: Record<string, string> | null;
}

export interface Index {
  version: string;
  links: Record<string, string>;
  read_only: boolean;
  caller: Caller | null;
}

export interface Version {
  version: string;
  kernel: string;
  kernel_release: string;
  keeper: "running" | "failing" | null;
  uptime_seconds: number;
}

export interface Run {
  returned: number;
  meaning: string | null;
  duration_ns: number;
  packet: string;
}

/** What an edit that is not applied yet makes of an entry: a program, by a reference as requests take it, or null. */
export type Target = { ref: string | { id: number } | { pinned: string }; label: string } | null;

export interface GraphProgram {
  id: number;
  name: string | null;
  kernel_name: string;
  type: string;
  code: "read" | "hidden";
  reached: "attached" | "unattached" | "never";
}

export interface GraphArray {
  id: number;
  name: string | null;
  kernel_name: string;
  max_entries: number;
  owner: { program_type: string; attach_type: string | null } | null;
  used: number | null;
  /** 1,024 at most. */
  entries: { index: number; program: number }[] | null;
}

export interface Graph {
  programs: GraphProgram[];
  arrays: GraphArray[];
  edges: { program: number; array: number; indexes: number[] | null; certain: boolean }[];
  attachments: { program: number; kind: string; where: string | null; attach_type: string | null; namespace: string | null }[];
  unreached: {
    programs: { program: number; reason: string }[];
    /** `indexes`: 1,024 at most, of `count`. */
    entries: { array: number; count: number; indexes: number[]; reason: string }[];
  };
  empty_jumps: { program: number; array: number; index: number; reason: "empty" | "out-of-range"; certain: boolean }[];
  cycles: { programs: number[]; certain: boolean }[];
  longest_chain: { programs: number[]; jumps: number; limit: number; exceeds_limit: boolean } | null;
  unseen: string[];
}

export interface ObjectFiles {
  objects: ObjectFile[];
  upload: boolean;
  object_dirs: string[];
}

export interface ObjectFile {
  name: string;
  version: number;
  etag: string;
  file: string | null;
  sha256: string;
  bytes: number;
  loaded_at: string;
  programs: { name: string; program: string; type: string; attach_type: number; instructions: number; id: number | null }[];
  maps: { name: string | null; map: string; type: string; max_entries: number; use: string | null }[];
  previous: { version: number; sha256: string; loaded_at: string } | null;
  state: "loaded" | "unavailable";
  reason: string | null;
  warnings: string[];
}

/** How an object file is loaded, as the fields have it. */
export interface LoadOptions {
  programs: { name: string; type: string; attach: string; load: boolean }[];
  maps: { name: string; place: "use" | "previous" | "pinned" | "max_entries"; value: string }[];
  variables: { name: string; value: string }[];
  values: string;
  pinning: string;
  move: boolean;
  switch: { map: string; index: string; program: string } | null;
}

export interface LoadedObjectFile {
  object: ObjectFile;
  changes: Change[];
  fit?: "tried" | "type-only";
  entries?: { map: string; entries: ChangedEntry[] }[];
}
