"""The ConfigMap that a Benchmark is compared with: read when somebody asks, since a watch would hold all of them."""

import base64

import orjson

from capstan_operator.api.benchmark import ConfigMapBaseline
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import CONFIG_MAPS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.observe_benchmark import ObservedBenchmark, ObservedKept


async def read_kept(client: KubeClient, benchmark: ObservedBenchmark) -> ObservedKept | None:
    """What `spec.baseline.configMap` holds; None: it names none, or the operator may not read it, and the report will.
    Raises ApiError when the API server does not answer."""
    wanted = _config_map_of(benchmark)
    if wanted is None:
        return None
    try:
        found = orjson.loads(await client.get(CONFIG_MAPS, benchmark.namespace, wanted.name))
    except ApiError as error:
        if error.is_not_found:
            return ObservedKept(is_there=False)
        if error.status == 403:
            return None
        raise
    text = (found.get("data") or {}).get(wanted.key)
    raw = (found.get("binaryData") or {}).get(wanted.key)
    if text is None and raw is not None:
        text = base64.b64decode(raw).decode(errors="replace")
    return ObservedKept(is_there=True, text=text)


def _config_map_of(benchmark: ObservedBenchmark) -> ConfigMapBaseline | None:
    """Of a spec that nobody has checked yet."""
    baseline = benchmark.spec.get("baseline")
    wanted = baseline.get("configMap") if isinstance(baseline, dict) else None
    try:
        return ConfigMapBaseline.model_validate(wanted, strict=True, by_alias=True, by_name=False)
    except ValueError:
        return None
