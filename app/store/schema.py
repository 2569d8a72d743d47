"""The journal's tables. Forward only: a version that was released is never changed, only followed by the next."""

from typing import Final

VERSIONS: Final = (
    """
    CREATE TABLE changes (
        id INTEGER PRIMARY KEY,            -- rises by one
        event INTEGER NOT NULL,            -- its event's id; rises, in one sequence with events.id
        at REAL NOT NULL,                  -- seconds since 1970
        map TEXT NOT NULL,
        map_id INTEGER NOT NULL,
        boot_id TEXT NOT NULL,             -- of the boot in which map_id and the programs' ids mean something
        kind TEXT NOT NULL,                -- see records.Kind
        actor TEXT NOT NULL,
        request_id TEXT NOT NULL,
        note TEXT,
        entries BLOB NOT NULL,             -- see records.EntryChanges.packed
        state TEXT NOT NULL,               -- see records.State
        reverts INTEGER,
        confirm_by REAL                    -- seconds since 1970
    );
    CREATE TABLE events (                  -- those that are no change by themselves
        id INTEGER PRIMARY KEY,
        type TEXT NOT NULL,                -- confirmed, drift, map, program
        map TEXT,
        change_id INTEGER,                 -- of confirmed
        data TEXT                          -- JSON, of the others
    );
    CREATE TABLE waiting (                 -- changes that are undone unless they are confirmed
        token TEXT PRIMARY KEY,
        change_id INTEGER,                 -- NULL: it is still being written
        after INTEGER NOT NULL,            -- the last change that was journalled before it
        change TEXT NOT NULL,              -- JSON: the whole of it, but for its entries
        entries BLOB NOT NULL,             -- as of changes
        deadline REAL NOT NULL,            -- seconds of CLOCK_BOOTTIME
        keeps TEXT NOT NULL                -- JSON: [[program id, path], …]
    );
    CREATE TABLE arrays (                  -- the maps whose entries are recorded, and of which array
        map TEXT PRIMARY KEY,
        map_id INTEGER NOT NULL,
        boot_id TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE recorded (                -- what entries are to hold, by the changes up to bookmarks.folded
        map TEXT PRIMARY KEY,
        programs TEXT NOT NULL,            -- see table.Recording
        numbers BLOB NOT NULL
    );
    CREATE TABLE holds (                   -- what requests had held
        kind TEXT NOT NULL,                -- map, program
        name TEXT NOT NULL,
        pinned TEXT,
        object_id INTEGER,
        boot_id TEXT NOT NULL,
        create_entries INTEGER,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    CREATE TABLE bookmarks (
        folded INTEGER NOT NULL,           -- the last change that is in `recorded`
        pruned INTEGER NOT NULL            -- the last event that is gone
    );
    INSERT INTO bookmarks VALUES (0, 0);
    """,
)
