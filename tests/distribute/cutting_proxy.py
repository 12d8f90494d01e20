"""A proxy on loopback that cuts its connections after a number of bytes, a given number of times."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cutting(port: int, after: int, times: int) -> Iterator[tuple[int, list[int]]]:
    """The proxy's port, and a list that grows by the bytes that passed before each cut."""
    cuts: list[int] = []
    closing = threading.Event()
    lock = threading.Lock()

    def pump(source: socket.socket, sink: socket.socket, peers: tuple[socket.socket, ...]) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                with lock:
                    cut = passed > after and len(cuts) < times
                    if cut:
                        cuts.append(passed)
                if cut:
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while not closing.is_set():
            try:
                inside, _ = listener.accept()
            except OSError:
                return
            outside = socket.create_connection(("127.0.0.1", port))
            for source, sink in ((inside, outside), (outside, inside)):
                threading.Thread(target=pump, args=(source, sink, (inside, outside)), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], cuts
    finally:
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
