"""A worker process that decodes nothing: it answers, hangs, crashes, dies or refuses to start, as it is told."""

import ctypes
import os
import socket
import sys
import threading

from pipeline.device.nvdec.crash import report_crashes
from pipeline.media.child import die_with
from pipeline.media.protocol import receive_message, send_message


def serve(channel: socket.socket) -> None:
    while True:
        message, _ = receive_message(channel)
        if message["do"] == "die":
            os._exit(1)
        if message["do"] == "crash":
            ctypes.string_at(0)
        if message["do"] == "wait":
            threading.Event().wait()
        send_message(channel, {"pid": os.getpid(), "do": message["do"]})


def main() -> None:
    parent_pid, *handles = map(int, sys.argv[1:])
    die_with(parent_pid)
    channels = [socket.socket(fileno=handle) for handle in handles]
    settings, _ = receive_message(channels[0])
    if settings["fails"] == "at once":
        raise SystemExit("the stand-in fails")
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
