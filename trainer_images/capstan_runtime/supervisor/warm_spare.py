"""The warm spare: a trainer's process that has done its imports and waits for a membership.

The first one imports while its pod waits for its place in the world, so that a pod that joins a running job is as quick
as one that restarts. The next ones stand beside a trainer. Whatever becomes of them, the worst is that a trainer pays
for its imports.
"""

from collections.abc import Callable

from capstan_runtime.contract.run_config import Membership
from capstan_runtime.supervisor.child import Child
from capstan_runtime.supervisor.log import Log
from capstan_runtime.supervisor.settings import Settings

_NICENESS = 10
"""Beside a trainer: imports take a tenth of a core that it wants all of, and a second where one is free."""


class WarmSpare:
    """At most one spare process."""

    def __init__(self, settings: Settings, log: Log, on_change: Callable[[], None]) -> None:
        """`on_change` hears when one has become ready, or has ended unasked."""
        self._settings = settings
        self._log = log
        self._on_change = on_change
        self._child: Child | None = None
        self._is_wanted = settings.run.warm_spare
        """Beside a trainer."""
        self._is_discarded = False

    @property
    def pid(self) -> int | None:
        """Of the process that waits; None: there is none."""
        return self._child.pid if self._child is not None else None

    @property
    def is_ready(self) -> bool | None:
        """Whether it could begin at once; None: there is none."""
        return self._child.is_ready if self._child is not None else None

    def start_first(self) -> None:
        """Starts the process of the first trainer, ahead of its membership. There is no trainer for it to give way to,
        and no second process: a run that wants no spare has this one too."""
        self._start(niceness=None)

    def start(self) -> None:
        """Starts one beside a trainer, if the run wants one and there is none."""
        if self._child is None and self._is_wanted:
            self._start(_NICENESS)

    def _start(self, niceness: int | None) -> None:
        try:
            self._child = Child(self._settings, membership=None, niceness=niceness)
        except OSError as error:
            self._log.say(f"no warm spare: {error}")
            return
        self._child.when_ready(self._on_change)

    def take(self, membership: Membership) -> Child | None:
        """The spare as the trainer of `membership`; None when there is none that lives.

        One that is still importing is taken as well: it will not begin later than a process that is started now.
        """
        self.reap()
        child, self._child = self._child, None
        if child is None:
            return None
        ready = "ready" if child.is_ready else "still importing"
        if not child.become_trainer(membership):
            child.kill_group()
            child.close()
            return None
        self._log.say(f"the warm spare is the trainer of fence {membership.fence}, {ready}")
        return child

    def reap(self) -> bool:
        """Takes note of the spare's end. True when it has just ended."""
        if self._child is None:
            return False
        self._child.reap()
        if not self._child.has_exited:
            return False
        self._child.close()
        self._child = None
        if not self._is_discarded:
            self._log.say("the warm spare has ended; the next trainer starts cold")
            self._on_change()
        return True

    def discard(self) -> None:
        """Kills it: there will be no next trainer, and no spare any more."""
        self._is_wanted, self._is_discarded = False, True
        if self._child is not None:
            self._child.kill_group()
