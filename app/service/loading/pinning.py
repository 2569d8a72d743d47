"""Pins of what object files are made of, by which it outlives the service."""

import uuid

import structlog

from app.bpf.kernel import Kernel
from app.service.loading.version import Version
from app.service.objects.opening import pin_failure

log = structlog.get_logger()


class Pinning:
    """Pins versions in one folder. Thread rule: one event loop.

    Attributes:
        keep_dir: The folder in bpffs. None: nothing is pinned.
    """

    def __init__(self, kernel: Kernel, keep_dir: str | None) -> None:
        """Pin nothing yet."""
        self._kernel = kernel
        self.keep_dir = keep_dir

    def pin(self, version: Version) -> None:
        """Pin what a version keeps. On failure some pins may be there; `unpin` removes them.

        Raises:
            PinUnusable, KernelError: One cannot be pinned.
        """
        if self.keep_dir is None:
            return
        token = uuid.uuid4().hex
        for place, each in enumerate(version.pinnable()):
            opened = each.object
            assert opened is not None  # it was just loaded
            path = each.pin or f"{self.keep_dir}/{token}_{place}"
            try:
                self._kernel.make_folder(self.keep_dir)
                self._kernel.obj_pin(opened.fd, path)
            except OSError as error:
                raise pin_failure(self._kernel, path, "OBJ_PIN", error) from error
            each.pin = path

    def unpin(self, version: Version) -> None:
        """Remove the pins of a version."""
        for each in version.pinnable():
            if each.pin is not None:
                try:
                    self._kernel.unpin(each.pin)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    log.warning("a pin that is not needed any more stays", pin=each.pin, reason=str(error))
                each.pin = None
