"""A real OpenID provider as a process: npm's oidc-provider, on the loopback, with keys that a test gives it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

from tests.servers.rabbitmq import free_port

__all__ = ["HERE", "OpenIDProvider", "installed"]

HERE: Final = Path(__file__).resolve().parent / "openid_provider"
STOP_TIMEOUT: Final = 10.0

JWK = dict[str, Any]


def installed() -> bool:
    """Whether a provider can be started."""
    return shutil.which("node") is not None and (HERE / "node_modules" / "oidc-provider").is_dir()


class OpenIDProvider:
    """A provider for a ``with`` block; it can be stopped and started again within it, under the same issuer.

    It has two clients: ``script`` with the secret ``of-the-script`` (client credentials), and ``browser`` (code with
    PKCE, back to ``http://127.0.0.1/callback``), whose users sign in with any password. Tokens are for the resource
    ``urn:<audience>`` that is asked for. A start takes about a second, and like everything here it blocks the thread.
    """

    def __init__(self, keys: Sequence[JWK], *, started: bool = True) -> None:
        self.port = free_port()
        self._keys = list(keys)
        self._published: list[object] = []
        self._is_wanted = started
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end

    @property
    def issuer(self) -> str:
        """Where it is, and its name."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def __enter__(self) -> Self:
        if self._is_wanted:
            self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._stderr.close()

    def start(self) -> None:
        """Start it, or start it again."""
        node = shutil.which("node")
        assert node is not None
        self._process = subprocess.Popen(
            [node, str(HERE / "provider.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
        )
        try:
            self._tell()
        except BaseException:
            self._process.kill()
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def publish(self, keys: Sequence[JWK], *, also: Sequence[object] = ()) -> None:
        """Have other keys, the first of which signs. ``also`` is shown among the public keys as it is."""
        self._keys, self._published = list(keys), list(also)
        self._tell()

    def _tell(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        print(
            json.dumps({"port": self.port, "keys": self._keys, "published": self._published}),
            file=process.stdin,
            flush=True,
        )
        if "READY\n" not in iter(process.stdout.readline, ""):  # the library has lines of its own
            self._stderr.seek(0)
            raise RuntimeError(f"the provider did not start:\n{self._stderr.read().decode(errors='replace')[-3000:]}")
