"""`capstan doctor`: looks at a cluster, and says what is right, what is wrong and what to do."""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from textwrap import wrap

import orjson

from capstan_operator.cluster.credentials import CredentialsError, load_credentials
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Limiter
from capstan_operator.doctor.api_checks import check_api, check_definitions
from capstan_operator.doctor.facts import Facts
from capstan_operator.doctor.finding import Finding, Level
from capstan_operator.doctor.node_checks import check_nodes, check_storage
from capstan_operator.doctor.operator_checks import check_operator
from capstan_operator.doctor.read import read_facts
from capstan_operator.doctor.workload_checks import check_namespaces, check_objects
from capstan_operator.metrics import Metrics

CHECKS = (check_api, check_definitions, check_operator, check_nodes, check_storage, check_namespaces, check_objects)
WIDTH = 118


def examine(facts: Facts) -> list[Finding]:
    """All findings, area by area. Pure."""
    return [finding for check in CHECKS for finding in check(facts)]


def main(options: argparse.Namespace) -> int:
    """The exit code: 0 nothing failed, 1 something did, or the API server cannot be asked."""
    try:
        facts = asyncio.run(_read(options))
    except (ApiError, CredentialsError, OSError) as error:
        print(f"capstan doctor: {error}", file=sys.stderr)
        return 1
    findings = examine(facts)
    if options.output == "json":
        print(as_json(findings))
    else:
        print("\n".join(as_text(findings)))
    return 1 if any(one.level is Level.FAIL for one in findings) else 0


async def _read(options: argparse.Namespace) -> Facts:
    credentials = load_credentials(options.kubeconfig, options.context)
    async with KubeClient(credentials, Limiter(), Metrics()) as client:
        return await read_facts(client, credentials.server, options.namespace, options.timeout)


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each level."""
    return {level.value: sum(one.level is level for one in findings) for level in Level}


def as_json(findings: Sequence[Finding]) -> str:
    """`{counts, findings}`."""
    return orjson.dumps(
        {"counts": counts(findings), "findings": [asdict(one) for one in findings]}, option=orjson.OPT_INDENT_2
    ).decode()


def as_text(findings: Sequence[Finding]) -> Iterator[str]:
    """Lines for a terminal: each area, what was checked in it, and how to mend what is not right."""
    width = max(len(one.check) for one in findings)
    for area, found in groupby(findings, key=lambda one: one.area):
        yield area
        for one in found:
            yield from _lines(f"  {one.level:<4}  {one.check:<{width}}  ", one.message)
            if one.fix:
                yield from _lines(" " * (width + 10) + "-> ", one.fix)
        yield ""
    numbers = counts(findings)
    told = ", ".join(f"{number} {level}" for level, number in numbers.items())
    yield f"{told}: what was skipped was not looked at, and may be wrong" if numbers[Level.SKIP] else told


def _lines(head: str, text: str) -> list[str]:
    return wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
