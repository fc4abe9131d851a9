"""A run that registers what it ends with: rank 0 does, once its last checkpoint was read back."""

import threading
from collections.abc import Callable
from pathlib import Path

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.claims import newer_fence
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import TrainContext
from capstan_runtime.contract import env
from capstan_runtime.contract.registry import REGISTRY, Register, Registered
from capstan_runtime.errors import ConfigError, StoreUnavailable
from capstan_runtime.registry.registering import Candidate, Wanted, register, this_code
from capstan_runtime.registry.registry import Registry, Taken

IMAGE = "CAPSTAN_IMAGE"
"""Environment variable: the container's image as the pod asks for it."""


class RegisterAtEnd:
    """Works on a thread of its own, so that the other ranks go on hearing from this one."""

    def __init__(self, context: TrainContext, run_store: Store) -> None:
        """Raises ConfigError when the version is another run's already: better now than when all is trained."""
        self._context = context
        self._run_store = run_store
        wish = context.run.register_as
        place = context.environ.get(REGISTRY)
        assert wish is not None, "only a run that registers has one of these"
        if not place or not run_store.place.startswith(place.rstrip("/")):
            raise ConfigError(f"{REGISTRY}: {place} is not the store above {run_store.place}; the operator sets both")
        self._wish: Register = wish
        self._registry = Registry(open_store(place, context.environ), context.environ)
        self._run = run_store.place.removeprefix(place.rstrip("/")).strip("/")
        self._thread: threading.Thread | None = None
        self._outcome: Registered | Exception | None = None
        self._step = context.steps
        if wish.version is not None:
            try:
                self._registry.who_has(wish.name, wish.version, self._wanted().is_same(None, context.run.uid))
            except Taken as error:
                raise ConfigError(f"spec.registerAs.{error}") from error

    def wait_after(self, others: Callable[[float], bool] | None, step: int) -> Callable[[float], bool]:
        """`wait(seconds)` is whether it is over, after at most so long: first `others`, then the registration of the
        checkpoint of `step`, at which the run has ended."""
        self._step = step

        def wait(seconds: float) -> bool:
            if self._thread is None:
                if others is not None and not others(seconds):
                    return False
                self._thread = threading.Thread(target=self._work, name="registering", daemon=True)
                self._thread.start()
            self._thread.join(seconds)
            return not self._thread.is_alive()

        return wait

    def result(self) -> Registered:
        """Once `wait` was called: what is registered, however long it takes. Raises what was in its way: ConfigError,
        CorruptCheckpoint, StoreUnavailable, OSError."""
        if self._thread is None:  # the others took all the patience there was
            self._work()
        else:
            self._thread.join()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def _work(self) -> None:
        try:
            self._outcome = self._register()
        except Exception as error:
            self._outcome = error

    def _register(self) -> Registered:
        run, membership = self._context.run, self._context.membership
        newer = newer_fence(self._run_store, run.uid, membership.fence)
        if newer is not None:
            raise StoreUnavailable(f"fence {newer} has taken over; fence {membership.fence} may not register anything")
        try:
            entry = register(self._registry, self._candidate(), self._wanted())
            self._promote(entry.version)
        except Taken as error:
            raise ConfigError(f"spec.registerAs.{error}") from error
        return Registered(name=entry.name, version=entry.version, root=entry.root)

    def _wanted(self) -> Wanted:
        run, key = self._context.run, self._context.environ.get(env.SIGNING_KEY)
        return Wanted(
            name=self._wish.name,
            version=self._wish.version,
            bump=self._wish.bump,
            by=f"TrainingJob {run.job}",
            config=run.document(),
            code=this_code(self._context.environ.get(IMAGE)),
            signing_key=Path(key) if key else None,
            is_own=True,
        )

    def _candidate(self) -> Candidate:
        """The newest save of the last step."""
        run, step = self._context.run, self._step
        listing = list_candidates(self._run_store, run.uid)
        found = next((each for each in listing.candidates if each.problem is None and each.name.step == step), None)
        if found is None:
            raise StoreUnavailable(f"{self._run_store.place}: no sound checkpoint of step {step} is to be seen yet")
        return Candidate(self._run_store, self._run, found.name, run.checkpoint.verify.public_key)

    def _promote(self, version: str) -> None:
        """Once: an attempt after this one must not undo what somebody promoted meanwhile."""
        stage, name = self._wish.stage, self._wish.name
        if stage is None or any(move.version == version for move in self._registry.history(name, stage)):
            return
        self._registry.promote(name, version, stage, f"TrainingJob {self._context.run.job}")
