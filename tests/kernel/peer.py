"""The other end of the program `two_kernels`, which runs in each guest and on this machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vm import GuestDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vm import Guest


# Seconds that an emulator gets to end after its output has.
PARTING = 5


class PeerError(Exception):
    """A command failed, or the other end is gone."""


class Answer:
    """What a command will answer."""

    def __init__(self, peer: Peer, task: str) -> None:
        self.peer = peer
        self.task = task
        self.arrived: queue.SimpleQueue[dict] = queue.SimpleQueue()

    def get(self) -> object:
        """Wait for it."""
        try:
            answer = self.arrived.get(timeout=self.peer.patience)
        except queue.Empty:
            answer = {"error": f"no answer within {self.peer.patience:.0f} s"}
        if "error" in answer:
            raise PeerError(f"{self.peer.name}: {self.task}: {answer['error']}{self.peer.log()}")
        return answer["ok"]


class Peer:
    """Sends commands, and sorts the answers by their numbers."""

    def __init__(self, name: str, program_input: IO[str], program_output: IO[str], patience: float) -> None:
        self.name = name
        self.patience = patience
        self.log: Callable[[], str] = lambda: ""
        self._input = program_input
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Answer] = {}
        self._ended = False
        self._lock = threading.Lock()
        threading.Thread(target=self._receive, args=(program_output,), daemon=True).start()

    def start(self, task: str, **arguments: object) -> Answer:
        """Send a command without waiting for its answer."""
        number = next(self._numbers)
        answer = Answer(self, task)
        with self._lock:
            self._waiting[number] = answer
            ended = self._ended
        if ended:
            answer.arrived.put({"error": "it has ended"})
        else:
            self._input.write(json.dumps({"id": number, "do": task, **arguments}) + "\n")
            self._input.flush()
        return answer

    def ask(self, task: str, **arguments: object) -> object:
        """Send a command and wait for its answer."""
        return self.start(task, **arguments).get()

    def run(self, *command: str) -> str:
        """Output of a command that must succeed there."""
        done = self.ask("run", command=list(command))
        if done["status"] != 0:
            raise PeerError(f"{self.name}: `{' '.join(command)}`: status {done['status']}\n{done['stderr']}")
        return done["stdout"]

    def end(self) -> None:
        """Let the program end."""
        self._input.write("end\n")
        self._input.flush()

    def _receive(self, output: IO[str]) -> None:
        for line in output:
            try:
                answer = json.loads(line)
                waiting = self._waiting.pop(answer["id"], None)
            except (ValueError, TypeError, KeyError):
                waiting = None
            if waiting:
                waiting.arrived.put(answer)
            else:
                print(f"{self.name}: {line}", end="", file=sys.stderr, flush=True)
        with self._lock:
            self._ended = True
            left = list(self._waiting.values())
        for waiting in left:
            waiting.arrived.put({"error": "it has ended"})


@contextmanager
def on_this_machine(program: Path, patience: float) -> Iterator[Peer]:
    """The program here."""
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Peer("this machine", process.stdin, process.stdout, patience)
    finally:
        process.kill()
        process.wait()


@contextmanager
def in_guest(name: str, guest: Guest, program: Path, patience: float) -> Iterator[Peer]:
    """The program in a guest, which must end well when it is done."""
    guest.interactive = True
    with guest.start([str(program)]) as running:
        peer = Peer(name, running.input, running.output, patience)
        peer.log = lambda: f"\n--- console of {name}\n{running.log()}"
        try:
            yield peer
            peer.end()
        except (PeerError, OSError) as error:
            # An emulator that is about to end has closed its output before.
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(PARTING)
            if why := running.death():
                raise GuestDiedError(f"{name}: {why}") from error
            raise
        if status := running.wait():
            raise PeerError(f"{name} ended with status {status}")
