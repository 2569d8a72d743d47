"""The journal's tables. Forward only: a version that was released is never changed, only followed by the next."""

from typing import Final

VERSIONS: Final = (
    """
    CREATE TABLE changes (
        id INTEGER PRIMARY KEY,            -- rises by one
        at REAL NOT NULL,                  -- seconds since 1970
        map TEXT NOT NULL,
        map_id INTEGER NOT NULL,
        boot_id TEXT NOT NULL,             -- of the boot in which map_id and the programs' ids mean something
        kind TEXT NOT NULL,                -- set, clear, replace, update, revert
        actor TEXT NOT NULL,
        request_id TEXT NOT NULL,
        note TEXT,
        entries TEXT NOT NULL,             -- JSON: [{"index", "before", "after"}, …]
        state TEXT NOT NULL,               -- applied, reverted
        reverts INTEGER
    );
    """,
)
