"""Reference figures that ship with the product: given with its requirements, measured by others, published nowhere.
They are shown beside a result and never judged against it."""

from capstan_runtime.contract.base import Record


class ReferenceFigure(Record):
    """One number of a row."""

    metric: str
    labels: dict[str, str]
    unit: str
    value: float


class ReferenceRow(Record):
    """What one configuration was said to reach."""

    name: str
    workload: str
    title: str
    source: str
    hardware: str
    """As the source says; `an unnamed GPU` where it says no more."""
    figures: tuple[ReferenceFigure, ...]


_UNNAMED = "an unnamed GPU"


def _source(hardware: str) -> str:
    return f"given as a reference with the requirements of Capstan; measured by others on {hardware}"


def _inference(name: str, title: str, at_1: float, at_32: float) -> ReferenceRow:
    figures = tuple(
        ReferenceFigure(metric="samples_per_second", labels={"batchSize": size}, unit="samples/s", value=value)
        for size, value in (("1", at_1), ("32", at_32))
    )
    return ReferenceRow(
        name=name,
        workload="inference",
        title=title,
        source=_source(_UNNAMED),
        hardware=_UNNAMED,
        figures=figures,
    )


def _training(name: str, title: str, tokens_per_second: float) -> ReferenceRow:
    figure = ReferenceFigure(metric="tokens_per_second", labels={}, unit="tokens/s", value=tokens_per_second)
    return ReferenceRow(
        name=name,
        workload="training",
        title=title,
        source=_source("A100-80GB"),
        hardware="A100-80GB",
        figures=(figure,),
    )


def _scaling() -> ReferenceRow:
    figures = tuple(
        ReferenceFigure(metric="speedup", labels={"workers": workers, "mode": "strong"}, unit="x", value=value)
        for workers, value in (("2", 1.8), ("4", 3.4), ("8", 6.2))
    )
    return ReferenceRow(
        name="data-parallel-speedup",
        workload="scaling",
        title="Speed-up of distributed training over one GPU",
        source=_source(_UNNAMED),
        hardware=_UNNAMED,
        figures=figures,
    )


REFERENCE_ROWS: dict[str, ReferenceRow] = {
    row.name: row
    for row in (
        _inference("flax-mlp", "Flax MLP, inference", 1_247, 18_734),
        _inference("flax-cnn", "Flax CNN, inference", 892, 12_456),
        _inference("torch-mlp", "PyTorch MLP, inference", 1_156, 16_892),
        _inference("torch-cnn", "PyTorch CNN, inference", 765, 10_234),
        _training("a100-1b-2-gpus", "1B parameters on 2 GPUs", 15_000),
        _training("a100-7b-8-gpus", "7B parameters on 8 GPUs", 12_000),
        _training("a100-70b-32-gpus", "70B parameters on 32 GPUs", 8_500),
        _scaling(),
    )
}


def names_for(workload: str) -> list[str]:
    """Names of the rows that a workload can be shown beside."""
    return [row.name for row in REFERENCE_ROWS.values() if row.workload == workload]
