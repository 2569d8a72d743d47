"""JSON objects with a long list."""

from collections.abc import Iterator


def list_chunks(text: str, member: str, parts: Iterator[str]) -> Iterator[bytes]:
    """Encode an object with a long list.

    Args:
        text: The JSON of the object, with an empty list.
        member: The name of the list.
        parts: The elements as JSON, some at a time. All parts but the first begin with a comma.

    Returns:
        Chunks of one JSON object. Each is encoded when it is asked for.
    """
    # This text cannot occur within a string, where its quotes would be escaped.
    before, _, after = text.partition(f'"{member}":[]')
    # Each chunk is held back until the next one exists, so that the last one can carry the end of the object.
    text = f'{before}"{member}":[{next(parts, "")}'
    for following in parts:
        yield text.encode()
        text = following
    yield f"{text}]{after}".encode()
