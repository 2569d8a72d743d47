"""The configuration: the keys it accepts, and the one-line message for a mistake."""

from pathlib import Path

import pytest

from app.access.rights import Grant, Ranges
from app.config import ConfigurationError, Settings, load
from app.service.objects.source import ById, Pinned


def read(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "jumptable.toml"
    file.write_text(text)
    return load(file)


class TestLoad:
    def test_an_empty_file_gives_the_defaults(self, tmp_path: Path) -> None:
        settings = read(tmp_path, "")
        assert settings.server.socket == Path("/run/jumptable/api.sock")
        assert settings.server.pin_dirs == [Path("/sys/fs/bpf")]
        assert (settings.server.kernel, settings.maps, settings.programs) == ("linux", {}, {})

    def test_every_section_is_read(self, tmp_path: Path) -> None:
        settings = read(
            tmp_path,
            """
            [server]
            socket = "/tmp/api.sock"
            socket_group = "adm"
            state_dir = "/tmp/state"
            kernel = "memory"
            pin_dirs = ["/sys/fs/bpf", "/run/bpf"]
            keep_dir = "/sys/fs/bpf/jumptable"
            durability = "process"
            user = "jumptable"

            [maps.jump_table]
            pinned = "/sys/fs/bpf/jump_table"
            create = { max_entries = 64 }
            protected = ["0-3", "60"]
            on_start = "report"

            [maps."by.id"]
            id = 12

            [programs.parse_v2]
            pinned = "/sys/fs/bpf/parse_v2"
            follow = true

            [peers.netops]
            group = 0
            role = "writer"
            maps = ["jump_table"]
            entries = ["8-15"]

            [peers.fleet]
            user = 0
            role = "writer"
            on_behalf = true

            [tokens]

            [limits]
            requests_per_second = 50
            """,
        )
        assert settings.maps["jump_table"].source() == Pinned("/sys/fs/bpf/jump_table")
        assert settings.maps["jump_table"].create is not None
        assert settings.maps["by.id"].source() == ById(12)
        assert (settings.maps["jump_table"].follow, settings.programs["parse_v2"].follow) == (False, True)
        assert settings.programs["parse_v2"].source() == Pinned("/sys/fs/bpf/parse_v2")
        assert settings.maps["jump_table"].protected == ["0-3", "60"]
        assert settings.peers["netops"].grant() == Grant("writer", frozenset({"jump_table"}), Ranges(((8, 15),)))
        assert [each.rule("a").on_behalf for each in settings.peers.values()] == [False, True]
        assert settings.token_file() == Path("/tmp/state/tokens.json")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[server", "is not TOML"),
            ("[sever]", "sever: there is no such key; there are: server, peers, tokens, tls, limits, audit, maps, "),
            ("[peers.a]\nrole = 'writer'", "peers.a: needs exactly one of user and group"),
            ("[peers.a]\nuser = 'nobody-here'\nrole = 'writer'", "peers.a: there is no user 'nobody-here'"),
            ("[peers.a]\nuser = 0\nrole = 'king'", "peers.a.role: input should be 'reader', 'writer'"),
            ("[programs.a]\nid = 3\nfollow = true", "programs.a: follow goes with pinned"),
            ("[limits]\nconnections = 0", "limits.connections: input should be greater"),
            ("[server]\nprot = 1", "server.prot: there is no such key; there are: socket, "),
            ("[server]\nkernel = 'windows'", "server.kernel: input should be 'linux' or 'memory'"),
            ("[server]\nsocket = 'api.sock'", "server.socket: must be an absolute path"),
            ("[server]\nport = 8080", "server.port: serving on TCP needs authentication"),
            ("[server]\nhost = '::1'", "server.host: serving on TCP needs authentication"),
            ("[server]\nport = 'x'", "server.port: input should be a valid integer"),
            ("[maps.a]", 'maps.a: needs exactly one of pinned = "/sys/fs/bpf/…" and id = …'),
            ("[maps.a]\npinned = '/x'\nid = 3", "maps.a: needs exactly one of"),
            ("[maps.a]\nid = '41'", "maps.a.id: input should be a valid integer"),
            ("[server]\npin_dirs = '/sys/fs/bpf'", 'server.pin_dirs: must be a list, as in ["/sys/fs/bpf"]'),
            (f"[server]\nsocket = '/{'x' * 107}'", "server.socket: a unix socket's path has at most 107 bytes"),
            ("[maps.a]\nid = 0", "maps.a.id: input should be greater than or equal to 1"),
            ("[maps.a]\nid = 3\ncreate = { max_entries = 3 }", "maps.a: create goes with pinned"),
            ("[maps.a]\npinned = '/x'\ncreate = { entries = 3 }",
             "maps.a.create.entries: there is no such key; there are: max_"),
            ("[maps.create]\npin = '/x'", "maps.create.pin: there is no such key; there are: pinned, id"),
            ("[programs.a]\nid = 3\ncreate = {}", "programs.a.create: there is no such key; there are: pinned, id"),
            ("maps = 3", "maps: must be a TOML table"),
            ("server = 3", "server: must be a TOML table"),
            ("[maps.a]\npinned = '/x'\nprotected = ['3-1']",
             "maps.a.protected.0: is a range that ends before it begins"),
            ("[maps.a]\npinned = '/x'\nprotected = ['x']", 'is neither an index like "60" nor a range like "0-3"'),
            ("[maps.'a/b']\npinned = '/x'", "a name has 1 to 64 characters"),
            ("[programs.a]\npin = '/x'", "programs.a.pin: there is no such key; there are: pinned, id"),
        ],
    )  # fmt: skip
    def test_a_mistake_is_one_line_with_file_key_and_remedy(self, tmp_path: Path, text: str, expected: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            read(tmp_path, text)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "jumptable.toml"))
        assert expected.lower() in message.lower()
        assert "\n" not in message

    @pytest.mark.field
    def test_all_mistakes_are_told_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Field 23: whoever has made five mistakes does not start the service five times to find them."""
        monkeypatch.setenv("JUMPTABLE_SERVER__PIN_DIRS", "/run/bpf")
        with pytest.raises(ConfigurationError) as caught:
            read(
                tmp_path,
                """
                [server]
                port = 8080
                [maps.a]
                pin = "/x"
                [maps.b]
                pinned = "/x"
                create = { entries = 3 }
                [peers.c]
                user = "nobody-here"
                role = "king"
                [peers.d]
                user = "nobody-here"
                role = "writer"
                [limits]
                burst = 0
                """,
            )
        file = tmp_path / "jumptable.toml"
        assert [line.removeprefix(f"{file}: ").partition(": ")[0] for line in str(caught.value).split("\n")] == [
            "environment JUMPTABLE_SERVER__PIN_DIRS",
            "peers.c.role",
            "peers.d",
            "limits.burst",
            "maps.a.pin",
            "maps.b.create.entries",
            "server.port",
        ]

    @pytest.mark.field
    def test_no_more_than_twenty_mistakes_are_told(self, tmp_path: Path) -> None:
        """Field 23: a file that is wrong throughout does not fill the screen."""
        with pytest.raises(ConfigurationError) as caught:
            read(tmp_path, "".join(f"[maps.m{number}]\n" for number in range(25)))
        assert len(caught.value.messages) == 21
        assert caught.value.messages[-1] == f"{tmp_path / 'jumptable.toml'}: and 5 more"

    def test_a_missing_file_is_a_configuration_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
            load(tmp_path / "nope.toml")

    def test_a_file_that_is_not_utf_8_is_not_toml(self, tmp_path: Path) -> None:
        (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
        with pytest.raises(ConfigurationError, match="is not TOML"):
            load(tmp_path / "latin.toml")


class TestEnvironment:
    def test_a_variable_overrides_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JUMPTABLE_SERVER__STATE_DIR", "/tmp/other")
        monkeypatch.setenv("JUMPTABLE_SERVER__PIN_DIRS", '["/run/bpf"]')
        settings = read(tmp_path, "[server]\nstate_dir = '/tmp/state'\nkernel = 'memory'")
        assert (settings.server.state_dir, settings.server.kernel) == (Path("/tmp/other"), "memory")
        assert settings.server.pin_dirs == [Path("/run/bpf")]

    def test_variables_that_kubernetes_makes_are_ignored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PORT", "SERVER", "SERVER_PORT", "MAPS", "SERVICE_HOST", "PORT_8080_TCP"):
            monkeypatch.setenv(f"JUMPTABLE_{name}", "tcp://10.0.0.1:80")
        assert read(tmp_path, "").server.port is None

    def test_the_case_of_a_variable_does_not_matter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("jumptable_server__kernel", "memory")
        assert read(tmp_path, "").server.kernel == "memory"

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("PORT", "9000", "environment JUMPTABLE_SERVER__PORT: serving on TCP"),
            ("KERNEL", "windows", "environment JUMPTABLE_SERVER__KERNEL: input should be"),
            ("PROT", "1", "environment JUMPTABLE_SERVER__PROT: there is no such key"),
            ("PIN_DIRS", "/run/bpf", "environment JUMPTABLE_SERVER__PIN_DIRS: must be a list in JSON, as in '["),
            ("PIN_DIRS", "", "environment JUMPTABLE_SERVER__PIN_DIRS: must be a list in JSON, as in '["),
            ("PIN_DIRS", '"/run/bpf"', 'environment JUMPTABLE_SERVER__PIN_DIRS: must be a list, as in ["/run/bpf"]'),
        ],
    )
    def test_a_mistake_names_the_variable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: str
    ) -> None:
        monkeypatch.setenv(f"JUMPTABLE_SERVER__{name}", text)
        with pytest.raises(ConfigurationError) as caught:
            read(tmp_path, "")
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep_dir", ["/sys/fs/bpf", "/sys/fs", "/"])
def test_keep_dir_must_not_contain_a_pin_dir(tmp_path: Path, keep_dir: str) -> None:
    (tmp_path / "c.toml").write_text(f'[server]\nkeep_dir = "{keep_dir}"\n')
    with pytest.raises(ConfigurationError, match="keep_dir is for this service alone"):
        load(tmp_path / "c.toml")
