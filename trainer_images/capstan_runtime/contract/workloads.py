"""What a Benchmark's own pods measure. These models are embedded in the CRD's `spec` and travel unchanged to the pods;
what TrainingJobs and InferenceServices measure is put together from them by the operator."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Positive, Record, cel, once, require_once
from capstan_runtime.contract.framework import Framework
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.sizes import SIZE, Size, cel_bytes, require_sizes, size_bytes, size_rule

Runtime = Literal["flax", "torch"]
RuntimeField = Annotated[Runtime, Field(description="What computes: flax is JAX, torch is PyTorch.")]
TrialSeconds = Annotated[float, Field(gt=0, le=3600)]


class ImageInput(Record):
    """Images in, classes out."""

    height: Positive
    width: Positive
    channels: Positive
    classes: Positive


class VectorInput(Record):
    """Vectors in, classes out."""

    features: Positive
    classes: Positive


class TokenInput(Record):
    """Tokens in, the next token out."""

    vocabulary: Annotated[int, Field(ge=2, description="Number of distinct tokens.")]
    sequence_length: Annotated[int, Field(ge=2, description="Tokens per sample.")]


class Input(OneOf):
    """What goes into the model. Set exactly one key."""

    image: Annotated[ImageInput | None, Field(description="Images: for cnn and mlp.")] = None
    vector: Annotated[VectorInput | None, Field(description="Vectors: for mlp.")] = None
    tokens: Annotated[TokenInput | None, Field(description="Tokens: for transformer.")] = None


def _suits(model: Model, data: Input) -> bool:
    match data.kind:
        case "tokens":
            return model.kind == "transformer"
        case "vector":
            return model.kind == "mlp"
        case _:
            return model.kind in ("mlp", "cnn")


_CEL_SUITS = (
    "(has(self.architecture.transformer) && has(self.input.tokens))"
    " || (has(self.architecture.mlp) && (has(self.input.vector) || has(self.input.image)))"
    " || (has(self.architecture.cnn) && has(self.input.image))"
)
_UNSUITABLE = (
    "input: transformer takes tokens, cnn takes image, mlp takes image or vector; change input or architecture"
)
_CEL_UNCONDITIONED = (
    "!(has(self.architecture.cnn)"
    " && (has(self.architecture.cnn.conditionalScaling) || has(self.architecture.cnn.adaptiveNorm)))"
    " && !(has(self.architecture.mlp) && has(self.architecture.mlp.conditionalScaling))"
)
_CONDITIONED = (
    "architecture: conditionalScaling and adaptiveNorm take a condition, which no input here has; remove them"
)


def _require_suits(model: Model, data: Input) -> None:
    if not _suits(model, data):
        raise ValueError(_UNSUITABLE)
    if model.takes_conditions:
        raise ValueError(_CONDITIONED)


_SUITABLE = ((_CEL_SUITS, f"'{_UNSUITABLE}'"), (_CEL_UNCONDITIONED, f"'{_CONDITIONED}'"))


class FreshModel(Record):
    """A model with random weights: speed does not depend on what it has learnt."""

    model_config = cel(*_SUITABLE)

    architecture: Annotated[Model, Field(description="The model's architecture.")]
    input: Annotated[Input, Field(description="What goes into it.")]

    @model_validator(mode="after")
    def _takes_its_input(self) -> Self:
        _require_suits(self.architecture, self.input)
        return self


class CheckpointModel(Record):
    """A verified checkpoint in results.store: what is measured is what will be served, byte for byte."""

    run: Annotated[
        str,
        Field(
            # Each part begins with a letter or digit, so none is "." or "..".
            pattern=r"^[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*$",
            max_length=512,
            description="Its folder: <namespace>/<job>/<uid>. The namespace is that of the Benchmark.",
        ),
    ]
    digest: Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$", description="The checkpoint's digest.")]


class MeasuredModel(OneOf):
    """The model that is measured. Set exactly one key."""

    fresh: Annotated[FreshModel | None, Field(description="Made on the spot, with random weights.")] = None
    checkpoint: Annotated[CheckpointModel | None, Field(description="A checkpoint in results.store.")] = None


class Inference(Record):
    """Answers per second and seconds per answer of a model that is called directly, without a server."""

    model_config = cel(once("batchSizes"))

    runtime: RuntimeField
    model: Annotated[MeasuredModel, Field(description="What is measured.")]
    batch_sizes: Annotated[
        list[Positive], Field(min_length=1, max_length=32, description="Samples per call; every size is measured.")
    ] = [1, 32]
    new_tokens: Annotated[
        int, Field(ge=1, le=65536, description="Tokens generated for each prompt, of a transformer.")
    ] = 32
    seconds: Annotated[TrialSeconds, Field(description="How long each batch size is measured in each repetition.")] = 5
    warmup_seconds: Annotated[float, Field(ge=0, le=3600, description="Before that, calls that are not counted.")] = 1

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        require_once(batchSizes=self.batch_sizes)
        return self


class Request(Record):
    """One kind of request: what locust calls a task."""

    name: Annotated[str, Field(min_length=1, max_length=63, description="How it is called in tables.")]
    weight: Annotated[int, Field(ge=1, le=1000, description="How often it is chosen, relative to the others.")] = 1
    method: Annotated[Literal["GET", "POST", "PUT", "DELETE"], Field(description="HTTP method.")] = "POST"
    path: Annotated[
        str,
        Field(
            pattern=r"^/",
            max_length=2048,
            description="Path, with its query. $(SERVICE) in path and body is the name of the service that was made.",
        ),
    ]
    headers: Annotated[
        dict[str, str],
        Field(
            max_length=32,
            description="Added to the request. $(NAME) is environment variable NAME of container bench: keys belong "
            "into Secrets.",
        ),
    ] = {}
    body: Annotated[
        dict[str, Any] | None,
        Field(
            description="JSON that is sent. Left out: no body.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None


class ServiceLevel(Record):
    """What a rate must keep to count as served."""

    p99_milliseconds: Annotated[float, Field(gt=0, description="99 of 100 answers take at most that long.")]
    error_percent: Annotated[float, Field(ge=0, lt=100, description="At most so many requests fail.")] = 0.1


MOST_REQUESTS = 50_000_000
"""Of one run. What becomes of each is kept in memory, in 25 bytes, and sorted at the end."""
_CEL_REQUESTS = "self.rates.sum() * self.seconds + self.rates[0] * self.warmupSeconds"


class Load(Record):
    """Open-loop load: requests are due at times that do not depend on the answers, and a latency counts from when its
    request was due. So a server that stalls cannot slow down what measures it."""

    model_config = cel(
        once("rates"),
        once("scenario", "name"),
        (
            f"{_CEL_REQUESTS} <= {MOST_REQUESTS}.0",
            f"'rates: are ' + string({_CEL_REQUESTS}) + ' requests in seconds and warmupSeconds of one run, and "
            f"{MOST_REQUESTS:,} are the most; lower rates or seconds'",
        ),
    )

    rates: Annotated[
        list[Annotated[float, Field(gt=0, le=1_000_000)]],
        Field(min_length=1, max_length=32, description="Requests per second, one rung after the other."),
    ]
    arrivals: Annotated[
        Literal["Poisson", "Constant"], Field(description="Poisson: at random, as many users would. Constant: evenly.")
    ] = "Poisson"
    seconds: Annotated[TrialSeconds, Field(description="How long each rate is kept in each repetition.")] = 10
    warmup_seconds: Annotated[float, Field(ge=0, le=3600, description="Before that, the first rate, not counted.")] = 2
    timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="A request that is not answered by then has failed; so it is counted.")
    ] = 10
    connections: Annotated[int, Field(ge=1, le=65536, description="At most so many at once.")] = 256
    scenario: Annotated[
        list[Request], Field(min_length=1, max_length=32, description="Kinds of requests, chosen at random by weight.")
    ]
    objective: Annotated[
        ServiceLevel | None, Field(description="Given: the highest rate that keeps it is reported.")
    ] = None

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        require_once(rates=self.rates, scenario=[request.name for request in self.scenario])
        return self

    @model_validator(mode="after")
    def _fits_into_memory(self) -> Self:
        requests = sum(self.rates) * self.seconds + self.rates[0] * self.warmup_seconds
        if requests > MOST_REQUESTS:
            raise ValueError(
                f"rates: are {requests:.12g} requests in seconds and warmupSeconds of one run, and {MOST_REQUESTS:,} "
                "are the most; lower rates or seconds"
            )
        return self


Operation = Literal["allReduce", "allGather", "reduceScatter", "allToAll"]


class Collectives(Record):
    """Bandwidth between processes, by the definitions of nccl-tests: algorithm bandwidth is size over time, bus
    bandwidth that times what the operation must move."""

    model_config = cel(
        size_rule("smallest"),
        size_rule("largest"),
        (
            f"!self.smallest.matches('{SIZE}') || !self.largest.matches('{SIZE}')"
            f" || {cel_bytes('smallest')} <= {cel_bytes('largest')}",
            "'smallest: ' + self.smallest + ' is above largest ' + self.largest + '; exchange them'",
        ),
        once("operations"),
    )

    framework: Annotated[Framework, Field(description="Whose collectives: flax is JAX's, deepspeed is torch's.")]
    workers: Annotated[int, Field(ge=2, le=1024, description="Pods that take part, one process each.")] = 2
    operations: Annotated[list[Operation], Field(min_length=1, max_length=4, description="What is measured.")] = [
        "allReduce",
        "allGather",
        "reduceScatter",
        "allToAll",
    ]
    smallest: Size = "4KiB"
    largest: Size = "16MiB"
    factor: Annotated[int, Field(ge=2, le=1024, description="From one size to the next.")] = 4
    iterations: Annotated[int, Field(ge=1, le=10000, description="Counted per size, after five that are not.")] = 20

    @model_validator(mode="after")
    def _sizes_rise(self) -> Self:
        require_sizes(smallest=self.smallest, largest=self.largest)
        if size_bytes(self.smallest) > size_bytes(self.largest):
            raise ValueError(f"smallest: {self.smallest} is above largest {self.largest}; exchange them")
        return self

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        require_once(operations=self.operations)
        return self


class RooflineModel(Record):
    """A model that is placed under the roof."""

    model_config = cel(*_SUITABLE)

    name: Annotated[str, Field(min_length=1, max_length=63, description="How it is called in the plot.")]
    architecture: Annotated[Model, Field(description="The model's architecture.")]
    input: Annotated[Input, Field(description="What goes into it.")]
    batch_size: Annotated[int, Field(ge=1, description="Samples per call.")] = 32

    @model_validator(mode="after")
    def _takes_its_input(self) -> Self:
        _require_suits(self.architecture, self.input)
        return self


class Roofline(Record):
    """What the machine can do at most, measured: arithmetic by matrix products, bandwidth by copies that no cache
    holds. And where kernels and models are under that roof (Williams et al., 2009)."""

    model_config = cel(once("dtypes"), once("matrixSizes"), once("models", "name"))

    runtime: RuntimeField
    dtypes: Annotated[
        list[Literal["fp32", "bf16", "fp16"]], Field(min_length=1, max_length=3, description="Types of numbers.")
    ] = ["fp32"]
    matrix_sizes: Annotated[
        list[Annotated[int, Field(ge=16, le=65536)]],
        Field(min_length=1, max_length=16, description="Sides of the square matrices; the fastest is the peak."),
    ] = [512, 1024, 2048]
    seconds: Annotated[TrialSeconds, Field(description="How long each kernel is measured in each repetition.")] = 1
    models: Annotated[list[RooflineModel], Field(max_length=16, description="Models placed under the roof.")] = []

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        names = [model.name for model in self.models]
        require_once(dtypes=self.dtypes, matrixSizes=self.matrix_sizes, models=names)
        return self


class LawPoint(Record):
    """One finished training run."""

    parameters: Annotated[float, Field(gt=0, description="Weights of the model, all of them.")]
    tokens: Annotated[float, Field(gt=0, description="Tokens, or samples, it was trained on.")]
    loss: Annotated[float, Field(gt=0, description="Its final loss.")]


class LawModel(Record):
    """One size of the grid."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=20, description="Its name.")]
    architecture: Annotated[Model, Field(description="Takes the place of spec.job.model.")]


class LawGrid(Record):
    """Training runs of several sizes and lengths, made of spec.job; all of them are run."""

    model_config = cel(once("models", "name"), once("steps"))

    models: Annotated[list[LawModel], Field(min_length=3, max_length=16, description="Sizes, three or more.")]
    steps: Annotated[
        list[Positive], Field(min_length=3, max_length=16, description="Lengths in optimizer steps, three or more.")
    ]

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        require_once(models=[model.name for model in self.models], steps=self.steps)
        return self


class ScalingLaw(OneOf):
    """How the loss falls with model size and data: Kaplan et al. (2020) and Hoffmann et al. (2022). Set exactly one
    key."""

    points: Annotated[
        list[LawPoint] | None, Field(min_length=5, max_length=1000, description="Runs that were made elsewhere.")
    ] = None
    file: Annotated[
        str | None,
        Field(min_length=1, max_length=1024, description="CSV in results.store with parameters,tokens,loss."),
    ] = None
    grid: Annotated[LawGrid | None, Field(description="Runs to be made.")] = None


class CheckpointIo(Record):
    """Seconds to save, restore and verify a state of a given size, beside other libraries."""

    model_config = cel(size_rule("state"), once("beside"))

    state: Annotated[Size, Field(description="Parameters and optimizer state of one process.")] = "256MiB"
    beside: Annotated[
        list[Literal["TorchDCP", "Orbax"]],
        Field(max_length=2, description="What it is compared with; must be in the image."),
    ] = []
    runtime: RuntimeField = "torch"

    @model_validator(mode="after")
    def _is_a_size(self) -> Self:
        require_sizes(state=self.state)
        return self

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        require_once(beside=self.beside)
        return self


class ControlPlane(Record):
    """How many TrainingJobs this cluster's API server, scheduler and operator get through. Their pods end at once."""

    jobs: Annotated[int, Field(ge=1, le=10000, description="Created at once in each repetition.")] = 50
    workers: Annotated[int, Field(ge=1, le=64, description="Pods of each.")] = 2
