"""The quality report of a data set, for people and for machines, without a job."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from capstan_runtime.contract import words
from capstan_runtime.contract.data import Data
from capstan_runtime.data.look import look_at
from capstan_runtime.data.open import open_samples
from capstan_runtime.data.report import QualityReport
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.data_check import read_report
from capstan_runtime.data_tools.token_folder import Unusable
from capstan_runtime.download import fetched

_MOST_BYTES = 4 << 20
_MOST_BAD_SHOWN = 20
_MOST_PROBLEMS = 4
_MOST_COLUMNS_SHOWN = 16


def data_of(file: Path) -> Data:
    """What the first TrainingJob, or Benchmark of one, in a YAML or JSON file trains on; or the file is a `data`
    section itself, with `data:` or without. Raises Unusable."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise Unusable(f"{file}: has more than {_MOST_BYTES:,} bytes; give a manifest")
        documents = [each for each in yaml.safe_load_all(file.read_bytes()) if isinstance(each, dict)]
    except OSError as error:
        raise Unusable(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates that cannot be are a ValueError
        raise Unusable(f"{file}: is no YAML: {' '.join(str(error).split())[:200]}") from error
    found = next((section for each in documents if (section := _section(each)) is not None), None)
    if found is None:
        raise Unusable(f"{file}: has no data; give a TrainingJob, or its data section")
    try:
        return Data.parse(found)
    except ValidationError as error:
        raise Unusable(f"{file}: {'; '.join(_problem(one) for one in error.errors()[:_MOST_PROBLEMS])}") from error


def _problem(error: ErrorDetails) -> str:
    """Names field, value and rule."""
    where, given, rule = ".".join(["data", *map(str, error["loc"])]), error["input"], error["msg"]
    match error["type"]:
        case "missing":
            return f"{where}: is not there, and must be"
        case "extra_forbidden":
            return f"{where}: there is no such field; correct its name, or remove it"
        case "value_error":  # of a validator of ours, which names the value
            return f"{where}: {rule.removeprefix('Value error, ')}"
    return f"{where}: {given!r:.80} is refused: {rule[:1].lower()}{rule[1:]}"


def _section(document: Mapping[str, Any]) -> Any:
    """None: there is none."""
    spec = document.get("spec")
    if isinstance(spec, dict):
        run = spec.get("job") if isinstance(spec.get("job"), dict) else spec
        return run.get("data") if isinstance(run, dict) else None
    if "kind" in document:
        return None
    return document.get("data", document)


def inspect(
    data: Data, most: int, reference: Path | None, environ: Mapping[str, str]
) -> tuple[QualityReport, DataSpec]:
    """Raises ConfigError, StoreUnavailable."""
    compared = read_report(reference, "--reference") if reference is not None else None
    samples, spec = open_samples(fetched(data, environ), environ)
    return look_at(samples, spec, most, compared), spec


def shown(report: QualityReport, spec: DataSpec, output: str) -> str:
    """As `output` says: json is the report as it is kept, table is for people."""
    if output == "json":
        return json.dumps(report.model_dump(mode="json", by_alias=True), indent=1)
    return "\n".join(_table(report, spec))


def _table(report: QualityReport, spec: DataSpec) -> list[str]:
    looked = "all" if report.scanned == report.samples else f"{report.scanned:,}, evenly spaced"
    rows = [
        ("data", f"{report.samples:,} {spec}, {spec.outputs:,} {'tokens' if spec.kind == 'tokens' else 'classes'}"),
        ("looked at", looked),
        ("fingerprint", report.fingerprint),
        ("bad", f"{len(report.bad):,}"),
        ("duplicates", _duplicates(report)),
    ]
    if report.range is not None:
        rows.append(("range", f"{words.number(report.range.minimum)} to {words.number(report.range.maximum)}"))
    if report.classes:
        total = max(1, sum(report.classes))
        rows.append(
            (
                "classes",
                f"{words.number(100 * min(report.classes) / total)} to "
                f"{words.number(100 * max(report.classes) / total)} % each",
            )
        )
    if report.tokens is not None:
        rows += [
            ("entropy", f"{words.number(report.tokens.entropy_bits)} bits a token"),
            ("vocabulary", f"{report.tokens.distinct:,} of {report.tokens.vocabulary:,} tokens are there"),
        ]
    if report.lengths is not None:
        lengths = report.lengths
        rows.append(
            (
                "documents",
                f"{lengths.documents:,} of {lengths.minimum:,} to {lengths.maximum:,} tokens, "
                f"half of them of at most {words.number(lengths.median)}",
            )
        )
    rows += [
        (
            each.name,
            f"{words.number(each.mean)} ± {words.number(each.std)}, {words.number(each.minimum)} to "
            f"{words.number(each.maximum)}",
        )
        for each in report.columns[:_MOST_COLUMNS_SHOWN]
    ]
    rows += [
        (f"drift of {each.of}", f"{words.number(each.index)} (by chance up to {words.number(each.by_chance)})")
        for each in report.drift[:_MOST_COLUMNS_SHOWN]
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    lines += [f"warning: {warning}" for warning in report.warnings()]
    lines += [f"bad: {each.where} {each.reason}" for each in report.bad[:_MOST_BAD_SHOWN]]
    if len(report.bad) > _MOST_BAD_SHOWN:
        lines.append(f"bad: and {len(report.bad) - _MOST_BAD_SHOWN} more; --output json names all")
    return lines


def _duplicates(report: QualityReport) -> str:
    conflicts = report.duplicates.conflicts
    return f"{report.duplicates.count:,}" + (f", {conflicts} of them with another class" if conflicts else "")
