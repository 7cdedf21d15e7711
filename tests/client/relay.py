"""A TCP relay in front of the real service that loses connections on purpose, as networks do."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Relay:
    """Each new connection takes the next fault, or none when all are used up.

    A fault is a number: after so many answered bytes the connection is cut; None answers 503.
    """

    url: str
    target: tuple[str, int]
    faults: list[int | None] = field(default_factory=list)
    connections: int = 0

    @classmethod
    @contextmanager
    def before(cls, url: str, *faults: int | None) -> Iterator[Self]:
        """A running relay in front of `url`."""
        parts = urlsplit(url)
        with socket.create_server(("127.0.0.1", 0)) as server:
            relay = cls(
                f"http://127.0.0.1:{server.getsockname()[1]}",
                (str(parts.hostname), int(parts.port or 80)),
                list(faults),
            )
            thread = threading.Thread(target=relay._accept, args=(server,), daemon=True)
            thread.start()
            yield relay
            server.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            self.connections += 1
            fault = self.faults.pop(0) if self.faults else -1
            threading.Thread(target=self._serve, args=(near, fault), daemon=True).start()

    def _serve(self, near: socket.socket, fault: int | None) -> None:
        with near:
            if fault is None:
                near.recv(2**16)
                near.sendall(UNAVAILABLE)
                return
            with socket.create_connection(self.target) as far:
                threading.Thread(target=_pump, args=(near, far), daemon=True).start()
                left = fault
                while data := _received(far):
                    if fault >= 0 and len(data) >= left:
                        near.sendall(data[:left])
                        # Closing alone waits for the other thread, which still reads from it.
                        near.shutdown(socket.SHUT_RDWR)
                        return
                    left -= len(data)
                    near.sendall(data)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(2**16):
            sink.sendall(data)
    except OSError:
        return


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(2**16)
    except OSError:
        return b""
