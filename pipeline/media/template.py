"""The process that decoders are forked from: everything is loaded here, and no stranger's byte is ever read.

    python -m pipeline.media.template HANDLE PARENT_PID

Loading torch takes a second of CPU, and several by the clock on a machine at work; a fork of a process that has it
takes some hundredths, so a decoder that was killed is replaced at once. Forking is safe because there is one thread:
torch, numpy and OpenMP are told so before they load, and decord is loaded by the decoders. Memory is shared until it
is written, so the template costs little beside its decoder. It forks one decoder at a time, ends it and says how it
ended: only a parent is told that, and only a parent's kill cannot meet a number that was used again.

Each dies with its parent (the decoder with the template, the template with the sandbox), leaves no core dump and
says nothing on the terminal; the decoder's address space is bounded. A template may itself be a fork of one that a
machine's workers share (shared_template.py); then it ends when its sandbox hangs up.
"""

import gc
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.media.child import TOLD_TO_END, die_with, set_name, take_standing
from pipeline.media.image import allow_pixels
from pipeline.media.protocol import receive_message, send_message
from pipeline.media.shared_buffer import MOST_KEPT_BYTES
from pipeline.media.worker import Worker

DECODER_NAME = "pw-decoder"
_LAST_BREATH_SECONDS = 5.0


class Template:
    """Forks and ends decoders as its sandbox asks, until that hangs up."""

    def __init__(self, channel: socket.socket, worker: Worker) -> None:
        self._channel = channel
        self._worker = worker
        self._decoder = 0

    def serve(self) -> None:
        """Answer messages one by one; return when the sandbox is gone."""
        while True:
            try:
                message, handle = receive_message(self._channel)
            except EOFError:
                return
            send_message(self._channel, self._answer(message, handle))

    def _answer(self, message: dict[str, Any], handle: int | None) -> dict[str, Any]:
        if message["do"] == "end":
            return {"status": _end(self._decoder, at_once=message["at_once"])}
        assert handle is not None, "a decoder is forked with its channel"
        template = os.getpid()
        try:
            self._decoder = os.fork()
        except OSError as error:  # too many processes, or no memory
            os.close(handle)
            return {"error": error.strerror}
        if not self._decoder:
            self._become_decoder(template, handle)
        os.close(handle)
        return {"pid": self._decoder}

    def _become_decoder(self, template: int, handle: int) -> NoReturn:
        try:
            die_with(template)
            set_name(DECODER_NAME)
            self._channel.close()
            self._worker.serve(socket.socket(fileno=handle))
        finally:
            os._exit(1)  # whatever happened, nothing of the template's is to be ended here


def _end(pid: int, *, at_once: bool) -> int:
    """Wait for a child that is about to die, or kill it; its exit status, negative for a signal."""
    deadline = time.monotonic() + (0.0 if at_once else _LAST_BREATH_SECONDS)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.001)


def _bound_memory(limits: LimitsConfig) -> None:
    """Bound the address space to what is mapped now, the parent's buffer and the limit; needs every library loaded."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    bound = num_pages * resource.getpagesize() + MOST_KEPT_BYTES + limits.max_decoder_bytes
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def load() -> None:
    """Load what decoders need, and leave it in pages that forks go on sharing: a collection does not write to it."""
    torch.set_num_threads(1)
    Image.init()
    gc.collect()
    gc.freeze()


def serve(channel: socket.socket) -> int:
    """Take a sandbox's settings and serve it until it hangs up; the exit status is TOLD_TO_END where that was asked."""
    settings, _ = receive_message(channel)
    if settings.get("do") == "end":
        return TOLD_TO_END
    take_standing(**settings["standing"])
    limits = LimitsConfig.model_validate(settings["limits"])
    allow_pixels(limits)
    _bound_memory(limits)
    worker = Worker(
        DecodeConfig.model_validate(settings["decode"]), ImagesConfig.model_validate(settings["images"]), limits
    )
    send_message(channel, {"ready": True})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # until here one's own template kept it, to say why a start failed
    Template(channel, worker).serve()
    return 0


def main() -> None:
    """Run as the child of a sandbox."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with(int(sys.argv[2]))
    load()
    serve(channel)


if __name__ == "__main__":
    main()
