"""Which files the keeper opens for itself: what nobody but root, or its own user, can have put there."""

import errno
import os
from pathlib import Path

import pytest

from app.keeper.paths import own_file

OTHER = 12345


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A secret as Kubernetes mounts it: links in a folder with the sticky bit, to a file in a folder below."""
    folder = tmp_path / "secret"
    (folder / "..2026").mkdir(parents=True)
    folder.chmod(0o1777)
    file = folder / "..2026" / "tokens.json"
    file.write_text("[]")
    file.chmod(0o400)
    (folder / "..data").symlink_to("..2026")
    (folder / "tokens.json").symlink_to("..data/tokens.json")
    return folder / "tokens.json"


def refusal(file: Path, flags: int = os.O_RDONLY) -> int | None:
    """The errno; 0: it was opened."""
    try:
        os.close(own_file(str(file), flags))
    except OSError as error:
        return error.errno
    return 0


def test_a_secret_of_kubernetes_is_read_and_read_anew(secret: Path) -> None:
    with os.fdopen(own_file(str(secret), os.O_RDONLY)) as file:
        assert file.read() == "[]"
    new = secret.parent / "..2027"
    new.mkdir()
    (new / "tokens.json").write_text("[1]")
    (secret.parent / "..next").symlink_to("..2027")
    (secret.parent / "..next").rename(secret.parent / "..data")
    with os.fdopen(own_file(str(secret), os.O_RDONLY)) as file:
        assert file.read() == "[1]"


def test_a_link_that_others_can_replace_is_not_followed(secret: Path) -> None:
    secret.parent.chmod(0o777)
    assert refusal(secret) == errno.EACCES
    assert refusal(secret, os.O_WRONLY | os.O_CREAT | os.O_APPEND) == errno.EACCES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("whose", ["link", "folder"])
def test_a_link_of_others_or_in_their_folder_is_not_followed(secret: Path, whose: str) -> None:
    os.chown(secret if whose == "link" else secret.parent, OTHER, OTHER, follow_symlinks=False)
    assert refusal(secret) == errno.EACCES


def test_what_a_link_leads_to_must_be_such_a_file_as_well(secret: Path) -> None:
    secret.resolve().chmod(0o622)
    assert refusal(secret) == errno.EACCES
    secret.resolve().chmod(0o600)
    os.link(secret.resolve(), secret.parent / "another")
    assert refusal(secret) == errno.EACCES


def test_a_file_that_is_not_there_is_made_or_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "audit") == errno.ENOENT
    os.close(own_file(str(tmp_path / "audit"), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o600
