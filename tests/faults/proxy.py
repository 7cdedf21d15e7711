"""A TCP proxy on the loopback that fails on demand: what stands behind it is never touched, nor understood.

It reads no HTTP beyond the end of a request's head, which it needs to answer 503 itself.
"""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
CHUNK_BYTES = 16 * 2**10
END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 64 * 2**10
LINGER_SECONDS = 0.2
"""For a client to read its 503 before the connection goes."""
CALL_SECONDS = 10.0
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Mode(StrEnum):
    """How the proxy treats connections."""

    PASS = "pass"
    """Bytes go both ways."""
    REFUSE = "refuse"
    """Nobody listens; open connections are reset."""
    STALL = "stall"
    """Connections are taken, and no byte passes until the mode ends."""
    CUT = "cut"
    """A connection is reset after some bytes of a body, in whichever direction they come first."""
    UNAVAILABLE = "unavailable"
    """Every request is answered 503; none is passed on."""
    DEAF = "deaf"
    """Requests are passed on and carried out; their answers are lost."""


class Proxy:
    """In front of one port; use as a context manager. Its own port stays the same throughout."""

    def __init__(self, upstream_port: int, *, cut_after: int = 1500) -> None:
        """`cut_after`: bytes of a body that still pass in mode CUT."""
        self.bitten = 0
        """Connections that met a fault so far."""
        self._upstream_port = upstream_port
        self._cut_after = cut_after
        self._mode = Mode.PASS
        # Bound and never listening: keeps the port ours while nobody is to listen there.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind((HOST, 0))
        self._port: int = self._holder.getsockname()[1]
        self._listener: socket.socket | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._holder.close()

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://{HOST}:{self._port}"

    def set(self, mode: Mode) -> None:
        """From now on; when it returns, open connections have met the new mode too."""
        self._call(self._set(mode))

    @contextmanager
    def failing(self, mode: Mode) -> Iterator[None]:
        """In this mode while the block runs."""
        self.set(mode)
        try:
            yield
        finally:
            self.set(Mode.PASS)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    async def _listen(self) -> None:
        self._flowing.set()
        self._listener = socket.create_server((HOST, self._port), reuse_port=True)
        self._listener.setblocking(False)
        # Not asyncio's own server: that loses a connection that comes while it is being closed.
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            task = self._loop.create_task(self._serve(listener.accept()[0]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _listen_no_more(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _end(self) -> None:
        self._flowing.set()
        self._listen_no_more()
        self._reset_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, mode: Mode) -> None:
        if self._mode == Mode.REFUSE != mode:
            await self._listen()
        self._mode = mode
        self._flowing.set()
        if mode == Mode.STALL:
            self._flowing.clear()
        if mode in (Mode.REFUSE, Mode.UNAVAILABLE):
            self.bitten += self._reset_all()
        if mode == Mode.REFUSE:
            self._listen_no_more()

    def _reset_all(self) -> int:
        for writer in self._open:
            writer.transport.abort()
        return len(self._open)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        self._open.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                if self._mode == Mode.UNAVAILABLE:
                    await self._answer_unavailable(reader, writer)
                else:
                    await self._pass_on(reader, writer)
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _answer_unavailable(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.bitten += 1
        await reader.readuntil(END_OF_HEAD)
        writer.write(UNAVAILABLE)
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while await reader.read(CHUNK_BYTES):
                    pass

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flow()
        up_reader, up_writer = await asyncio.open_connection(HOST, self._upstream_port)
        ways = [
            asyncio.ensure_future(self._pump(reader, up_writer, answers=False)),
            asyncio.ensure_future(self._pump(up_reader, writer, answers=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            up_writer.transport.abort()

    async def _flow(self) -> None:
        if not self._flowing.is_set():
            self.bitten += 1
            await self._flowing.wait()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        """Pass bytes on until the source ends or a fault ends the connection."""
        head, body = b"", 0
        while chunk := await source.read(CHUNK_BYTES):
            await self._flow()
            if self._mode == Mode.DEAF and answers:
                self.bitten += 1
                return
            if END_OF_HEAD in head:
                body += len(chunk)
            else:
                # A chunk may hold the end of the head and the beginning of the body.
                head = (head + chunk)[:MAX_HEAD_BYTES]
                body = len(head.partition(END_OF_HEAD)[2])
            if self._mode == Mode.CUT and body > self._cut_after:
                self.bitten += 1
                target.write(chunk[: max(0, len(chunk) - (body - self._cut_after))])
                await target.drain()
                return
            target.write(chunk)
            await target.drain()
