"""The generated messages are those of rpc.proto."""

import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped]  # it has no types

from app.fleet_store import rpc_pb2

_ROOT = Path(__file__).parent.parent.parent
_PROTO = "app/fleet_store/rpc.proto"


def test_generated_messages_are_those_of_the_file() -> None:
    """The remedy: python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. app/fleet_store/rpc.proto."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["protoc", f"-I{_ROOT}", f"--descriptor_set_out={folder}/set", f"--pyi_out={folder}", _PROTO]
        assert protoc.main(arguments) == 0
        [now] = FileDescriptorSet.FromString((Path(folder) / "set").read_bytes()).file
        stubs = (Path(folder) / _PROTO.replace(".proto", "_pb2.pyi")).read_text()
    committed = FileDescriptorProto()
    rpc_pb2.DESCRIPTOR.CopyToProto(committed)
    for message in now.message_type:
        for field in message.field:
            field.ClearField("json_name")  # protoc leaves it out of the generated file
    assert now == committed
    assert stubs == (_ROOT / _PROTO.replace(".proto", "_pb2.pyi")).read_text()
