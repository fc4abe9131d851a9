"""The warm spare: a second trainer process that has done its imports and waits for a membership.

It is there so that a restart does not pay for imports. Whatever becomes of it, the worst is that a restart does.
"""

from capstan_runtime.contract.run_config import Membership
from capstan_runtime.supervisor.child import Child
from capstan_runtime.supervisor.log import Log
from capstan_runtime.supervisor.settings import Settings


class WarmSpare:
    """At most one spare process."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._child: Child | None = None
        self._is_wanted = settings.run.warm_spare

    @property
    def pid(self) -> int | None:
        """Of the process that waits; None: there is none."""
        return self._child.pid if self._child is not None else None

    @property
    def is_ready(self) -> bool:
        return self._child is not None and self._child.is_ready

    def start(self) -> None:
        """Starts one, if the run wants one and there is none."""
        if self._child is not None or not self._is_wanted:
            return
        try:
            self._child = Child(self._settings, membership=None)
        except OSError as error:
            self._log.say(f"no warm spare: {error}")

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
        self._log.say(f"the warm spare takes over, {ready}")
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
        if self._is_wanted:
            self._log.say("the warm spare has ended; the next trainer starts cold")
        return True

    def discard(self) -> None:
        """Kills it: there will be no next trainer, and no spare any more."""
        self._is_wanted = False
        if self._child is not None:
            self._child.kill_group()
