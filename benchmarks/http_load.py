"""HTTP load on this machine's loopback: bounded concurrency or a constant rate. Measures, judges nothing."""

import asyncio
import math
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen

import httpx

HOST = "127.0.0.1"
MILLI = 1e3
BARE_APP = """
from fastapi import FastAPI
app = FastAPI()
@app.get("/bare")
def read() -> dict[str, str]:
    return {"state": "running"}
@app.post("/bare", status_code=202)
def write(body: dict) -> dict[str, str]:
    return {"state": "queued"}
"""
"""What FastAPI itself costs: the same server, a route that does nothing."""


@dataclass(frozen=True)
class Call:
    """One HTTP/1.1 request as it goes over the wire."""

    wire: bytes

    @classmethod
    def of(cls, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> "Call":
        """`headers` beside host and length."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {HOST}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return cls("\r\n".join([*lines, "", ""]).encode() + body)


@dataclass(frozen=True)
class Answers:
    """What came back: statuses, and seconds from when each call was due."""

    statuses: list[int]
    seconds: list[float]
    elapsed: float

    def milliseconds(self, share: float) -> float:
        """The latency that this share of the calls does not exceed."""
        ordered = sorted(self.seconds)
        return MILLI * ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    def summary(self) -> dict[str, float | int]:
        """Counts and latencies in milliseconds."""
        return {
            "calls": len(self.statuses),
            "refused": sum(status >= 400 for status in self.statuses),
            "per_second": round(len(self.statuses) / self.elapsed, 1),
            "p50_ms": round(self.milliseconds(0.5), 2),
            "p95_ms": round(self.milliseconds(0.95), 2),
            "p99_ms": round(self.milliseconds(0.99), 2),
            "max_ms": round(self.milliseconds(1.0), 2),
        }


def send(
    port: int, calls: Sequence[Call], *, connections: int, rate: float | None = None
) -> Answers:
    """All calls over so many kept connections; with `rate` per second, each is due at its own time.

    A call that waits for a free connection waits on the clock: slow answers are not left out.
    """
    return asyncio.run(_send(port, calls, connections, rate))


async def _send(port: int, calls: Sequence[Call], connections: int, rate: float | None) -> Answers:
    statuses, seconds = [0] * len(calls), [0.0] * len(calls)
    waiting: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
    start = time.perf_counter()

    async def feed() -> None:
        for number in range(len(calls)):
            due = start if rate is None else start + number / rate
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            waiting.put_nowait((number, due))

    async def serve() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        while True:
            number, due = await waiting.get()
            begun = due if rate is not None else time.perf_counter()
            writer.write(calls[number].wire)
            statuses[number] = await _answer(reader)
            seconds[number] = time.perf_counter() - begun
            waiting.task_done()

    servers = [asyncio.create_task(serve()) for _ in range(connections)]
    await feed()
    done = asyncio.create_task(waiting.join())
    finished, _ = await asyncio.wait([done, *servers], return_when=asyncio.FIRST_COMPLETED)
    for task in finished:
        task.result()
    for server in servers:
        server.cancel()
    return Answers(statuses, seconds, time.perf_counter() - start)


async def _answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    length = next(
        int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")
    )
    await reader.readexactly(length)
    return int(status.split()[1])


@contextmanager
def bare_server(folder: Path, port: int) -> Iterator[None]:
    """A FastAPI application that does nothing, on the same server as the service's api."""
    (folder / "bare.py").write_text(BARE_APP)
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--host", HOST, "--port", str(port)]
    process = Popen([*command, "--no-access-log"], cwd=folder, stdout=DEVNULL, stderr=DEVNULL)
    try:
        while True:
            try:
                httpx.get(f"http://{HOST}:{port}/bare", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback address that nobody listens at now."""
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind((HOST, 0))
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
