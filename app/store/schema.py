"""The journal's tables, as a script for each version.

Migration goes forward only. Never change the statements of a version that was released: add the next version.
"""

from typing import Final

VERSIONS: Final = (
    """
    CREATE TABLE changes (
        id INTEGER PRIMARY KEY,            -- from 1 on, without gaps
        event INTEGER NOT NULL,            -- id of its event; shares a sequence with events.id
        at REAL NOT NULL,                  -- seconds since 1970
        map TEXT NOT NULL,
        map_id INTEGER NOT NULL,
        boot_id TEXT NOT NULL,             -- the boot that map_id and the programs' ids belong to
        kind TEXT NOT NULL,                -- see records.ChangeKind
        actor TEXT NOT NULL,
        request_id TEXT NOT NULL,
        note TEXT,
        entries BLOB NOT NULL,             -- format: records.EntryChanges.packed
        state TEXT NOT NULL,               -- see records.ChangeState
        reverts INTEGER,
        confirm_by REAL                    -- seconds since 1970
    );
    CREATE TABLE events (                  -- events other than changes
        id INTEGER PRIMARY KEY,
        type TEXT NOT NULL,                -- confirmed, drift, map, program
        map TEXT,
        change_id INTEGER,                 -- of the change that was confirmed
        data TEXT                          -- JSON; for all other types
    );
    CREATE TABLE waiting (                 -- records.PendingConfirmation
        token TEXT PRIMARY KEY,
        change_id INTEGER,                 -- NULL: the change is still being written
        after INTEGER NOT NULL,            -- id of the last change that was journalled before
        change TEXT NOT NULL,              -- JSON: records.Change without its entries
        entries BLOB NOT NULL,             -- same format as changes.entries
        deadline REAL NOT NULL,            -- seconds of CLOCK_BOOTTIME
        keeps TEXT NOT NULL                -- undo_pins as JSON: [[program id, path], …]
    );
    CREATE TABLE arrays (                  -- the array that each table in `recorded` belongs to
        map TEXT PRIMARY KEY,
        map_id INTEGER NOT NULL,
        boot_id TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE recorded (                -- expected tables, as of change bookmarks.folded
        map TEXT PRIMARY KEY,
        programs TEXT NOT NULL,            -- format: expected.PackedTable.packed
        numbers BLOB NOT NULL
    );
    CREATE TABLE holds (                   -- records.Hold
        kind TEXT NOT NULL,                -- map, program
        name TEXT NOT NULL,
        pinned TEXT,
        object_id INTEGER,
        boot_id TEXT NOT NULL,
        create_entries INTEGER,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    CREATE TABLE bookmarks (
        folded INTEGER NOT NULL,           -- id of the last change that is in `recorded`
        pruned INTEGER NOT NULL            -- id of the last event that is pruned
    );
    INSERT INTO bookmarks VALUES (0, 0);
    """,
    """
    ALTER TABLE changes ADD COLUMN confirmed_by TEXT;   -- the actor; NULL: nobody has confirmed it
    ALTER TABLE changes ADD COLUMN confirmed_at REAL;   -- seconds since 1970
    -- Few changes have one of these states, so the index is small, and writing an ordinary change does not touch it.
    CREATE INDEX changes_by_rare_state ON changes (state, id) WHERE state <> 'applied';
    """,
    """
    -- Changes that were made together, and whose state is `applied`. Their ids, and those of their events, are
    -- consecutive. A change is either here or in `changes`.
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY,            -- of its last change
        event INTEGER NOT NULL,            -- of its last change
        size INTEGER NOT NULL,             -- number of changes
        at REAL NOT NULL,                  -- seconds since 1970
        boot_id TEXT NOT NULL,
        content BLOB NOT NULL              -- format: records.Batch.packed
    );
    """,
    """
    CREATE TABLE objects (                 -- object files that are loaded
        name TEXT PRIMARY KEY,
        content TEXT NOT NULL              -- JSON: see loading.version
    ) WITHOUT ROWID;
    """,
)
