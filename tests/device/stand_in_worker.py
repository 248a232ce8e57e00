"""A worker process that decodes nothing: it answers, babbles, hangs, crashes, dies or does not start, as it is told."""

import ctypes
import os
import socket
import struct
import sys
import threading
import time

from pipeline.device.nvdec.crash import report_crashes
from pipeline.media.child import die_with
from pipeline.media.protocol import receive_message, send_message

BABBLE = {
    "no json": b"{",
    "no text": b"\xff\xfe\xff",
    "no object": b"[1, 2]",
    "nested": b"[" * 50_000,
    "digits": b'{"pid": ' + b"9" * 10_000 + b"}",
    "not what was asked for": b'{"pid": [], "do": null}',
}


def serve(channel: socket.socket) -> None:
    while True:
        message, _ = receive_message(channel)
        if message["do"] == "die":
            os._exit(1)
        if message["do"] == "crash":
            ctypes.string_at(0)
        if message["do"] == "wait":
            threading.Event().wait()
        if message["do"] in BABBLE:
            body = BABBLE[message["do"]]
            channel.sendall(struct.pack("<I", len(body)) + body)
            continue
        if message["do"] == "too long":
            channel.sendall(struct.pack("<I", 1 << 31))
            continue
        if message["do"] == "trickle":
            channel.sendall(struct.pack("<I", 1 << 10))
            for _ in range(1 << 10):
                channel.sendall(b" ")
                time.sleep(0.1)
        send_message(channel, {"pid": os.getpid(), "do": message["do"]})


def main() -> None:
    parent_pid, *handles = map(int, sys.argv[1:])
    die_with(parent_pid)
    channels = [socket.socket(fileno=handle) for handle in handles]
    settings, _ = receive_message(channels[0])
    if settings["fails"] == "at once":
        raise SystemExit("the stand-in fails")
    if settings["fails"] == "without threads":
        send_message(channels[0], {"threads": [1]})
        return
    if settings["fails"]:
        send_message(channels[0], {"error": "no decoders here"})
        return
    report_crashes()
    threads = [threading.Thread(target=serve, args=(channel,), daemon=True) for channel in channels]
    for thread in threads:
        thread.start()
    send_message(channels[0], {"threads": [thread.ident for thread in threads]})
    threads[0].join()


if __name__ == "__main__":
    main()
