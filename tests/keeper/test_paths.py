"""The files that the keeper opens for itself: only such that nobody but root and its own user can have written."""

import errno
import os
from pathlib import Path

import pytest

from app.keeper.paths import own_file

OTHER = 12345


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A secret as Kubernetes mounts it: in a folder with the sticky bit, links to a file in a folder below."""
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
    """The errno with which `own_file` refuses; 0 where it opens the file."""
    try:
        os.close(own_file(str(file), flags))
    except OSError as error:
        return error.errno
    return 0


def test_a_kubernetes_secret_is_read_again_after_it_was_replaced(secret: Path) -> None:
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


def test_the_target_of_a_link_is_checked_as_well(secret: Path) -> None:
    secret.resolve().chmod(0o622)
    assert refusal(secret) == errno.EACCES
    secret.resolve().chmod(0o600)
    os.link(secret.resolve(), secret.parent / "another")
    assert refusal(secret) == errno.EACCES


def test_a_missing_file_is_enoent_or_created_with_mode_0600(tmp_path: Path) -> None:
    assert refusal(tmp_path / "audit") == errno.ENOENT
    os.close(own_file(str(tmp_path / "audit"), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o600
