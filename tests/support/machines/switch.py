"""An Ethernet switch in this process: every frame between two hosts passes through here, if its link lets it.

A host's network card is a TAP device; what it sends is read here and written to the card of the addressee. So delay,
loss, a rate and a cut in one direction need nothing of the kernel (netem, iptables) that a machine may lack.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

MTU = 9001  # of Ethernet between EC2 instances
QUEUE_S = 0.5  # what a slow link holds back before it drops: a router's buffer
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
EVERYBODY = b"\xff" * 6


@dataclass(frozen=True)
class Way:
    """One direction of a link. loss: a share of the frames. bytes_a_second: 0 for no limit."""

    cut: bool = False
    delay_s: float = 0.0
    loss: float = 0.0
    bytes_a_second: float = 0.0


FREE, CUT = Way(), Way(cut=True)


class Port:
    """Where one host is plugged in. up: from the host, down: to it; both may be set at any time."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.up = self.down = FREE
        self.tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
        self.busy_until = {"up": 0.0, "down": 0.0}  # of a link with a rate

    def set(self, way: Way) -> None:
        self.up = self.down = way


class Switch:
    """Serves its ports in a thread until it is closed. seed: of the losses."""

    def __init__(self, seed: int) -> None:
        self._draws = random.Random(seed)
        self._ports: list[Port] = []
        self._where: dict[bytes, Port] = {}  # card's address → port
        self._waiting: list[tuple[float, int, bytes, Port, bool]] = []  # due, order, frame, port, whether up
        self._count = 0
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self.dropped: Counter[str] = Counter()  # by device
        self._thread = threading.Thread(target=self._serve, name="switch", daemon=True)
        self._thread.start()

    def plug(self, host: int, address: str) -> Port:
        """Gives the namespaces of process `host` a card `eth0` with this IPv4 address, and a route to anywhere."""
        port = Port(f"rd{os.getpid()}p{len(self._ports)}")
        _ip("link", "set", port.device, "netns", str(host))
        gateway = f"{address.rpartition('.')[0]}.1"
        for arguments in (
            ("link", "set", "lo", "up"),
            ("link", "set", port.device, "name", "eth0", "mtu", str(MTU)),
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", gateway),
        ):
            subprocess.run(["nsenter", "-t", str(host), "-n", "ip", *arguments], check=True)
        self._ports.append(port)
        self._selector.register(port.tap, selectors.EVENT_READ, port)
        return port

    def unplug(self, port: Port) -> None:
        self._ports.remove(port)
        self._selector.unregister(port.tap)
        os.close(port.tap)  # the device goes with it

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        for port in list(self._ports):
            self.unplug(port)
        self._selector.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            patience = self._waiting[0][0] - time.monotonic() if self._waiting else 0.1
            for key, _ in self._selector.select(max(0.0, min(patience, 0.1))):
                self._read(key.data)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, frame, port, up = heapq.heappop(self._waiting)
                self._switch(frame, port) if up else _write(port, frame)

    def _read(self, port: Port) -> None:
        with suppress(OSError):  # nothing more to read, or the host has gone
            for _ in range(64):
                frame = os.read(port.tap, MTU + 64)
                self._where[frame[6:12]] = port
                self._pass(frame, port, up=True)

    def _switch(self, frame: bytes, source: Port) -> None:
        target = self._where.get(frame[:6])
        for port in [target] if target else [port for port in self._ports if port is not source]:
            self._pass(frame, port, up=False)

    def _pass(self, frame: bytes, port: Port, *, up: bool) -> None:
        """Sends a frame over one direction of a port's link: now, later or never."""
        way, direction, now = (port.up, "up", time.monotonic()) if up else (port.down, "down", time.monotonic())
        start = max(now, port.busy_until[direction]) if way.bytes_a_second else now
        if way.cut or (way.loss and self._draws.random() < way.loss) or start - now > QUEUE_S:
            self.dropped[port.device] += 1
            return
        if way.bytes_a_second:
            start = port.busy_until[direction] = start + len(frame) / way.bytes_a_second
        due = start + way.delay_s
        if due > now:
            self._count += 1
            heapq.heappush(self._waiting, (due, self._count, frame, port, up))
        elif up:
            self._switch(frame, port)
        else:
            _write(port, frame)


def _write(port: Port, frame: bytes) -> None:
    with suppress(OSError):  # its queue is full, or the host has gone: a frame may be lost
        os.write(port.tap, frame)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
