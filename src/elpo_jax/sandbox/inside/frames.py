"""What goes over the socket between the sandbox and a zygote: frames of JSON, then bytes."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

RUN, KILL = b"r", b"k"  # before a snippet's frame; and to end the one that runs
_SIZES = struct.Struct(">IQ")


def send(channel: socket.socket, header: Mapping[str, Any], *parts: bytes) -> None:
    """Sends a header and byte strings, whose lengths go with it."""
    text = json.dumps({**header, "sizes": [len(part) for part in parts]}).encode()
    body = b"".join(parts)
    channel.sendall(_SIZES.pack(len(text), len(body)) + text + body)


def receive(channel: socket.socket) -> tuple[dict[str, Any], bytes]:
    """A header, with the lengths of its byte strings in 'sizes', and those in one.

    Raises:
      EOFError: the other side is gone.
    """
    text_size, body_size = _SIZES.unpack(_exactly(channel, _SIZES.size))
    header = json.loads(_exactly(channel, text_size))
    return header, _exactly(channel, body_size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
