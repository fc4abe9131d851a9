"""`spec.dataQuality` at work: the data is looked at before the first step, and what is found is kept and told."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import ObjectMissing, Store
from capstan_runtime.contract import env
from capstan_runtime.contract.data import Located
from capstan_runtime.contract.data_quality import REPORT, DataQuality
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.data.look import look_at
from capstan_runtime.data.open import Check, Checked
from capstan_runtime.data.report import REPORT_VERSION, QualityReport
from capstan_runtime.data.spec import BadSample, Dataset, DataSpec, Samples
from capstan_runtime.download import Alive, Source, fetch
from capstan_runtime.errors import ConfigError
from capstan_runtime.voice import Voice

_FIELD = "spec.dataQuality"
_MOST_NAMED = 3
_MOST_BYTES = 64 << 20


def check_of(run: RunConfig, environ: Mapping[str, str], alive: Alive) -> Check | None:
    """What looks at the data of `run`; None: nothing does.

    A report that is in the run's store already is taken for what a new look would find, if it is of the same data: so a
    restart does not look again. Rank 0 keeps it: a report of data that is refused here, any other in `tell_of_data`,
    since who looks may be a spare that has no rank yet.
    """
    quality = run.data_quality
    if quality is None:
        return None

    def check(samples: Samples, spec: DataSpec) -> Checked:
        store = open_store(environ[env.STORE], environ) if environ.get(env.STORE) else None
        reference = _reference(run, quality, environ, alive)
        report = _known(store, spec, min(quality.scan_samples, len(samples)), reference) if store else None
        if report is None:
            report = look_at(samples, spec, quality.scan_samples, reference, alive)
        try:
            left_out = _judged(quality, run.data.kind, report)
        except ConfigError:
            if store is not None and _is_rank_0(environ):
                _keep(store, report)
            raise
        return Checked(left_out, replaces=quality.bad_samples == "skip", report=report)

    return check


def tell_of_data(dataset: Dataset, store: Store, voice: Voice) -> None:
    """To status what was found, and from now on every bad sample that is met later. Rank 0 speaks of the former, and
    keeps the report in `store`."""
    for samples in dataset.replacing:
        samples.tell = lambda bad: _tell_replaced(bad, voice)
    if dataset.report is None or voice.rank != 0:
        return
    _keep(store, dataset.report)
    summary = dataset.report.summary()
    voice.report(data=summary)
    voice.say(f"data: looked at {summary.scanned:,} of {summary.samples:,} samples, {summary.bad} are bad")
    for warning in summary.warnings:
        voice.warn(f"data: {warning}")


def _tell_replaced(bad: BadSample, voice: Voice) -> None:
    line = f"bad sample, replaced by the next good one: {bad}"
    voice.warn(line)
    voice.report(note=line)


def _reference(run: RunConfig, quality: DataQuality, environ: Mapping[str, str], alive: Alive) -> QualityReport | None:
    if quality.reference is None:
        return None
    field = f"{_FIELD}.reference"
    if "://" in quality.reference:
        bucket = run.data.value.bucket if isinstance(run.data.value, Located) else None
        path = fetch(Source(field, quality.reference, bucket), environ, alive)
    else:
        path = Path(env.host_path(quality.reference, environ))
    return read_report(path, field)


def read_report(path: Path, field: str) -> QualityReport:
    """The report in file `path`, which `field` names. Raises ConfigError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{field}: {path} has more than {_MOST_BYTES:,} bytes; give a {REPORT}")
        return QualityReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}; mount it, or correct the path") from error
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(
            f"{field}: {path} is no {REPORT} of version {REPORT_VERSION} ({where}: {error.errors()[0]['msg']}); "
            "give one"
        ) from error


def _known(store: Store, spec: DataSpec, scanned: int, reference: QualityReport | None) -> QualityReport | None:
    """The report in the store, if it is what a look would find."""
    try:
        report = QualityReport.model_validate_json(_kept(store) or b"")
    except (OSError, ValidationError):
        return None
    facts = (report.version, report.fingerprint, report.scanned, report.reference)
    wanted = (REPORT_VERSION, spec.fingerprint, scanned, reference.fingerprint if reference else None)
    return report if facts == wanted else None


def _keep(store: Store, report: QualityReport) -> None:
    """Unless it is there. A report that cannot be kept ends no run: it is missed by who looks for it."""
    text = report.model_dump_json(by_alias=True, indent=1).encode()
    try:
        if _kept(store) != text:
            store.put(REPORT, [text])
            store.settle("")
    except OSError as error:
        sys.stderr.write(f"warning: {REPORT} is not kept: {error}\n")


def _kept(store: Store) -> bytes | None:
    try:
        return store.get(REPORT)
    except ObjectMissing:
        return None


def _is_rank_0(environ: Mapping[str, str]) -> bool:
    """False for a spare, too."""
    return bool(environ.get(env.MEMBERSHIP)) and json.loads(environ[env.MEMBERSHIP]).get("rank") == 0


def _judged(quality: DataQuality, kind: str, report: QualityReport) -> np.ndarray:
    """Numbers of the samples to leave out, ascending. Raises ConfigError when there are bad ones and none may be left
    out, or not so many."""
    bad = report.bad
    if not bad:
        return np.zeros(0, np.int64)
    named = "; ".join(f"{each.where} {each.reason}" for each in bad[:_MOST_NAMED])
    more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
    found = f"spec.data.{kind}: {len(bad)} of {report.scanned:,} samples cannot be trained on: {named}{more}"
    if quality.bad_samples == "fail":
        raise ConfigError(f"{found}; mend the data, or set {_FIELD}.badSamples to skip; {REPORT} names all of them")
    if len(bad) > quality.max_bad_fraction * report.scanned:
        raise ConfigError(
            f"{found}; they are more than {_FIELD}.maxBadFraction {quality.max_bad_fraction:g} allows to leave out; "
            f"mend the data, or raise it; {REPORT} names all of them"
        )
    return np.asarray(sorted(each.index for each in bad), np.int64)
