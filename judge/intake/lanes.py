"""Encoded images on their way through worker processes: a queue, and lanes that each keep one worker busy.

A lane sends the next images while its worker still decodes the ones before, and reads their answers in few, large
steps. So a worker never waits, and the process that scores pays little more than the copying of the pixels.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Event, Thread
from typing import Any, Protocol

from judge.errors import DecoderError, ImageError, first_line

from .processes import NO_ANSWER, PATIENCE, Answer, WorkerProcess, why_it_ended

BATCH = 32
"""Images sent to a worker at a time. It has up to two such batches, so that there is always a next image."""
MAX_WAITING_BYTES = 64 * 2**20
"""Encoded bytes that are read before a worker is free for them."""
_STARTS = 10
"""How often in a row a worker may end before it is ready; somebody, or a system without memory, may kill some."""
_PAUSE = 0.5
"""Seconds between such starts."""


class Task(Protocol):
    """An encoded image that is to be decoded."""

    data: bytes
    """The encoded image."""
    suspect: bool
    """Whether a worker was killed, or crashed, while it decoded this image."""

    @property
    def wanted(self) -> bool:
        """False where nobody waits for it any more."""

    def places(self, sizes: list[list[int]]) -> Sequence[Any]:
        """As `processes.Places`; raises ValueError where no worker should say such sizes."""

    def finish(self, found: Answer | ImageError) -> None:
        """Take the result; called once."""


class TaskQueue:
    """Images that were read and wait for a worker."""

    def __init__(self, workers: int) -> None:
        self._most = 2 * BATCH * workers
        self._tasks: deque[Task] = deque()
        self._bytes = 0
        changed = Condition()
        self._filled, self._emptied = changed, Condition(changed._lock)  # type: ignore[attr-defined]
        self.closed = Event()

    def put(self, task: Task) -> None:
        """Add an image; waits while there are enough."""
        with self._filled:
            self._emptied.wait_for(self._has_room)
            self._tasks.append(task)
            self._bytes += len(task.data)
            self._filled.notify()

    def _has_room(self) -> bool:
        return self.closed.is_set() or (len(self._tasks) < self._most and self._bytes < MAX_WAITING_BYTES)

    def take(self, most_bytes: int, *, idle: bool) -> list[Task]:
        """The next images for a worker: at most `BATCH` with `most_bytes`.

        Args:
            most_bytes: of all together.
            idle: whether the worker has nothing to do. Only then is an image above `most_bytes` taken, by itself, and
                waited for images. A `suspect` is by itself, too.

        Returns:
            None or some; none if not `idle`, or if the queue is closed.
        """
        with self._filled:
            if idle:
                self._filled.wait_for(lambda: self._tasks or self.closed.is_set())
            taken: list[Task] = []
            while self._tasks and len(taken) < BATCH and not self.closed.is_set():
                task = self._tasks[0]
                left = most_bytes - sum(len(task.data) for task in taken)
                alone = task.suspect or len(task.data) > most_bytes
                if task.wanted and ((len(task.data) > left and (taken or not idle)) or (alone and taken)):
                    break
                self._tasks.popleft()
                self._bytes -= len(task.data)
                if task.wanted:
                    taken.append(task)
                    if alone:
                        break
            self._emptied.notify(len(taken))
            return taken

    def give_back(self, tasks: Sequence[Task]) -> None:
        """Put images first that were taken and not decoded."""
        with self._filled:
            self._tasks.extendleft(reversed(tasks))
            self._bytes += sum(len(task.data) for task in tasks)
            self._filled.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        self.closed.set()
        with self._filled:
            self._filled.notify_all()
            self._emptied.notify_all()


class Lane:
    """One worker process after the other, and the thread that asks it."""

    def __init__(
        self,
        queue: TaskQueue,
        settings: dict[str, Any],
        fail: Callable[[BaseException], None],
    ) -> None:
        """Start both.

        Args:
            queue: from which this and other lanes take images.
            settings: of `processes.settings_of`.
            fail: called with a DecoderError where no worker can be started any more.
        """
        self._queue, self._settings, self._fail = queue, settings, fail
        self._asked: deque[deque[Task]] = deque()
        """Batches that were sent; of the first, the images that are not yet answered."""
        self.worker = self._start()
        self._thread = Thread(target=self._run, name="arbiter-decoding", daemon=True)
        self._thread.start()

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self._settings, patience=PATIENCE * self._settings["seconds"])

    def _run(self) -> None:
        try:
            while not self._queue.closed.is_set():
                self._make_ready()
                self._decode()
        except BaseException as error:  # whoever waits for an image has to know
            self._fail(error)
        finally:
            self.worker.kill()
            self.worker.close()

    def _make_ready(self) -> None:
        """Wait until the worker can decode; start others where it cannot.

        Raises:
            DecoderError: several could not.
        """
        for start in range(_STARTS):
            try:
                if start:
                    self._queue.closed.wait(_PAUSE)
                self._replace()
                return self.worker.wait_until_ready()
            except NO_ANSWER as error:
                reason = f"the process ended ({self.worker.kill()}, {first_line(error)})"
            if self._queue.closed.is_set():
                return None
        raise DecoderError(
            f"No process that decodes images could be started {_STARTS} times in a row: {reason}."
        )

    def _replace(self) -> None:
        """Have a worker that runs."""
        if self.worker.process.poll() is not None:
            self.worker.close()
            self.worker = self._start()

    def _decode(self) -> None:
        """Decode what is in the queue, until the worker ends or the queue is closed."""
        try:
            while self._ask_ahead():
                self._take_answers()
        except NO_ANSWER as error:
            status = self.worker.kill()
            if isinstance(error, TimeoutError):
                self._blame(self.worker.working_on, None)
            elif isinstance(error, OSError | EOFError):
                self._blame(self.worker.working_on, status)
            else:  # no such answer exists
                self._blame(0, status)

    def _blame(self, at: int | None, status: int | None) -> None:
        """Give all unanswered images back but the one at which the worker ended, if there was one.

        A crash may be somebody's kill; so it needs two. The other reasons are the worker's own.
        """
        unanswered = [task for batch in self._asked for task in batch]
        self._asked.clear()
        if at is not None:
            problem = why_it_ended(status, self._settings["seconds"])
            if problem.status == "crashed" and not unanswered[at].suspect:
                unanswered[at].suspect = True
            else:
                unanswered.pop(at).finish(problem)
        self._queue.give_back(unanswered)

    def _ask_ahead(self) -> bool:
        """Send what there is, up to two batches; waits for a first one. False if there is none to come."""
        # A quarter of the pipe for each. So writing never waits for a worker that waits until its answers are read.
        most_bytes = self.worker.room // 4
        while len(self._asked) < 2 and (batch := self._queue.take(most_bytes, idle=not self._asked)):
            self._asked.append(deque(batch))
            self.worker.send([task.data for task in batch])
        return bool(self._asked)

    def _take_answers(self) -> None:
        """Read the answers to a batch."""
        tasks = self._asked[0]
        while tasks:
            found = self.worker.receive(tasks[0].places)
            tasks.popleft().finish(found)
        self._asked.popleft()

    def close(self) -> None:
        """Kill the worker, whatever it does, and wait for the thread's end; after the queue was closed."""
        self.worker.kill()
        self._thread.join()
