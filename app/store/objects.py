"""The object files that are loaded: a text for each, which the service makes and understands."""

from app.store.database import Database


class ObjectRecords:
    """The table `objects`. `save` and `remove` must run inside a transaction of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, name: str, content: str) -> None:
        """Store the text of an object file, instead of the one before."""
        self._database.writer.execute("INSERT OR REPLACE INTO objects VALUES (?, ?)", (name, content))

    def remove(self, name: str) -> None:
        """Delete an object file."""
        self._database.writer.execute("DELETE FROM objects WHERE name = ?", (name,))

    def all(self) -> list[tuple[str, str]]:
        """Read the name and the text of each, by name.

        Raises:
            JournalFailed: The file cannot be read.
        """
        return [tuple(row) for row in self._database.read("SELECT name, content FROM objects ORDER BY name").fetchall()]
