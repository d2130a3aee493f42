"""FFmpeg's encoders in a process of their own: x264 and x265 have been seen to crash, which so costs a second try and not the run.

This file is also the program that runs there (`python -P isolated.py`), so it imports nothing of the package: torch would take seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from fractions import Fraction

import numpy as np

FPS = 25
TRIES = 3


def encode(pictures: np.ndarray, encoder: str, options: dict[str, str]) -> list[bytes]:
    """A packet per picture of `[f y x c]` uint8, each a row of NAL units behind start codes; no picture refers to a later one.

    Raises RuntimeError if the encoder refuses, or crashes three times.
    """
    return _isolated.encode(pictures, encoder, options)


def _encode(pictures: np.ndarray, encoder: str, options: dict[str, str]) -> list[bytes]:
    import av

    context = av.CodecContext.create(encoder, "w")
    context.width, context.height, context.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
    context.framerate, context.time_base, context.thread_count = FPS, Fraction(1, FPS), 1
    context.options = {"bf": "0"} | options
    packets = []
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = number
        packets += context.encode(frame)
    return [bytes(packet) for packet in packets + context.encode(None)]


class _Isolated:
    """The other process: started at the first clip, started again when it died, ended with ours."""

    def __init__(self, program: tuple[str, ...] = (sys.executable, "-P", __file__)):
        self.program, self.child, self.turn = program, None, threading.Lock()

    def encode(self, *task) -> list[bytes]:
        with self.turn:
            for _ in range(TRIES):
                try:
                    packets, refusal = self._ask(task)
                except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # it died before, at, or within its answer
                    self.end()
                except BaseException:  # interrupted: the answer that is still to come must not be taken for the next clip's
                    self.end()
                    raise
                else:
                    if refusal:
                        raise RuntimeError(f"the {task[1]} encoder does not take a clip of {task[0].shape}: {refusal}")
                    return packets
        raise RuntimeError(f"the {task[1]} encoder crashed {TRIES} times on a clip of {task[0].shape}, with the options {task[2]}")

    def _ask(self, task):
        if self.child is None:
            self.child = subprocess.Popen(self.program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pickle.dump(task, self.child.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self.child.stdin.flush()
        return pickle.load(self.child.stdout)

    def end(self):
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.wait()
            child.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # what was not yet sent
                child.stdin.close()


def _serve():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that asks
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = _encode(*task), None
        except Exception as error:
            answer = None, str(error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
else:
    _isolated = _Isolated()
    atexit.register(lambda: _isolated.end())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _isolated.__init__())  # a loader's worker starts its own
