"""Types of the parameters in paths."""

from typing import Annotated

from fastapi import Path

from app.api.schemas.fields import Decimal, Name

MapName = Annotated[Name, Path(description="The name under which the map is held.", examples=["jump_table"])]
ProgramName = Annotated[Name, Path(description="The name under which the program is held.", examples=["drop"])]
ObjectName = Annotated[Name, Path(description="The name under which the object file is loaded.", examples=["parser"])]
Index = Annotated[
    Decimal, Path(description="The index of the entry: a decimal u32 below the map's max_entries.", examples=[3])
]
