"""A pool whose workers do their units in this process, when they are polled."""

from collections import deque

from segsmith.engine.dispatch import Failed, Finished, Lost, Ready, Unusable
from segsmith.engine.work import Workshop


class InlinePool:
    """`workers` take turns. `faults` is called before each attempt and may return "fail", "die" or "hang"."""

    def __init__(self, setup, workers=1, *, latest_first=False, faults=lambda unit, worker: "", broken=()):
        self._shop = Workshop(setup)
        self._names = [f"w{n + 1}" for n in range(workers)]
        self._given = {name: deque() for name in self._names}
        self._news = []
        self._latest_first = latest_first
        self._faults = faults
        self._broken = broken
        self.done = []
        """(worker, unit) of each attempt that was committed or found that another one was."""

    def prepare(self, kind):
        self._shop.prepare(kind)
        for name in self._names:
            node = f"node-of-{name}"
            self._news.append(
                Unusable(name, node, "no such model") if name in self._broken else Ready(name, node)
            )

    @property
    def starting(self):
        return len(self._news)

    def submit(self, worker, unit, attempt):
        self._given[worker].append((unit, attempt))

    def poll(self, timeout):
        news, self._news = self._news, []
        if news:
            return news
        names = list(reversed(self._names)) if self._latest_first else list(self._names)
        for name in names:
            if not self._given[name]:
                continue
            unit, attempt = self._given[name].popleft()
            match self._faults(unit, name):
                case "fail":
                    news.append(Failed(name, unit.id, attempt, "OSError: no space left"))
                case "die":
                    self._names.remove(name)
                    news.append(Lost(name, "its process was killed"))
                case _:
                    images = self._shop.do(unit, attempt)
                    self.done.append((name, unit.id))
                    news.append(Finished(name, unit.id, attempt, images))
        return news

    def end(self, worker, *, replace):
        self._names.remove(worker)
        if replace:
            self._names.append(f"{worker}'")
            self._given[f"{worker}'"] = deque()
            self._news.append(Ready(f"{worker}'", f"node-of-{worker}"))

    def close(self):
        pass
