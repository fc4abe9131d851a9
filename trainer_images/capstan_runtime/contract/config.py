"""The training half of a TrainingJob: what is trained, on what, how.

These models are embedded in the CRD's `spec` and travel unchanged to the pods, so each fact has one definition.
Every field carries the description that `kubectl explain` shows.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Flax(Record):
    """Flax NNX on JAX: one compiled step, data parallel over the job's processes."""


class DeepSpeed(Record):
    """DeepSpeed on PyTorch."""

    zero_stage: Annotated[
        int,
        Field(
            ge=0,
            le=3,
            description="ZeRO stage: 0 replicates everything, 1 shards optimizer state, 2 also gradients, "
            "3 also parameters. bf16 needs stage 1 or higher.",
        ),
    ] = 1


class Framework(OneOf):
    """Which trainer runs the job. Set exactly one key."""

    flax: Annotated[Flax | None, Field(description="Train with Flax NNX on JAX.")] = None
    deepspeed: Annotated[DeepSpeed | None, Field(description="Train with DeepSpeed on PyTorch.")] = None


class Mlp(Record):
    """A multi-layer perceptron over flattened inputs, GELU between layers."""

    hidden: Annotated[
        list[Positive], Field(min_length=1, max_length=64, description="Width of each hidden layer, in units.")
    ]


DEFAULT_GROUPS = 8
_CEL_GROUPS = f"(has(self.groups) ? self.groups : {DEFAULT_GROUPS})"
"""In an element of a list the API server fills nothing in."""


class Cnn(Record):
    """A residual convolutional network over images.

    A 3x3 stem, then for each entry of `channels` one residual block of two 3x3 convolutions (stride 2 from the
    second entry on), global average pooling, and a linear classifier.
    """

    model_config = cel(
        (
            f"self.channels.all(c, c % {_CEL_GROUPS} == 0)",
            f"'groups ' + string({_CEL_GROUPS}) + ' does not divide every entry of channels; choose a common divisor'",
        )
    )

    channels: Annotated[
        list[Positive],
        Field(min_length=1, max_length=32, description="Output channels of each residual block, first to last."),
    ]
    groups: Annotated[
        int, Field(ge=1, description="Groups of the group normalisation; must divide every entry of channels.")
    ] = DEFAULT_GROUPS

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> Self:
        for channels in self.channels:
            if channels % self.groups:
                raise ValueError(
                    f"groups {self.groups} does not divide {channels} of channels; choose a common divisor"
                )
        return self


class Transformer(Record):
    """A Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases."""

    model_config = cel(
        (
            "self.dim % (2 * self.heads) == 0",
            "'dim ' + string(self.dim) + ' is not an even multiple of heads ' + string(self.heads)"
            " + '; rotary positions turn pairs: choose a multiple of ' + string(2 * self.heads)",
        ),
        (
            "!has(self.kvHeads) || self.heads % self.kvHeads == 0",
            "'kvHeads ' + string(self.kvHeads) + ' does not divide heads ' + string(self.heads)",
        ),
    )

    layers: Annotated[int, Field(ge=1, le=1024, description="Decoder blocks.")]
    dim: Annotated[int, Field(ge=8, description="Model width, in units; must be a multiple of heads.")]
    heads: Annotated[int, Field(ge=1, description="Query heads.")]
    kv_heads: Annotated[
        Positive | None, Field(description="Key and value heads; must divide heads. Left out: as many as heads.")
    ] = None
    hidden_dim: Annotated[
        Positive | None,
        Field(description="Width of the SwiGLU layer. Left out: 8/3 of dim, rounded up to a multiple of 32."),
    ] = None
    rope_theta: Annotated[float, Field(gt=0, description="Base of the rotary position frequencies.")] = 10000.0
    norm_epsilon: Annotated[float, Field(gt=0, description="Epsilon of RMSNorm.")] = 1e-5
    tied: Annotated[bool, Field(description="Share the embedding matrix with the output projection.")] = False

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"dim {self.dim} is not an even multiple of heads {self.heads}; "
                f"rotary positions turn pairs: choose a multiple of {2 * self.heads}"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kvHeads {self.kv_heads} does not divide heads {self.heads}")
        return self


class Model(OneOf):
    """The model's architecture. Set exactly one key. Input and output sizes follow from the data."""

    mlp: Annotated[Mlp | None, Field(description="A multi-layer perceptron.")] = None
    cnn: Annotated[Cnn | None, Field(description="A residual convolutional network, for images.")] = None
    transformer: Annotated[Transformer | None, Field(description="A Llama-style decoder, for tokens.")] = None


Held = Annotated[
    float,
    Field(gt=0.0, lt=1.0, description="Share of the samples held out for validation, chosen by the training seed."),
]


class Digits(Record):
    """The UCI handwritten digits that scikit-learn ships: 1,797 grey images of 8 x 8, ten classes."""

    validation_fraction: Held = 0.2


class Arrays(Record):
    """Labelled arrays in one file: .npz, .h5/.hdf5, or a .zarr folder."""

    path: Annotated[str, Field(min_length=1, description="File in the pod. The ending names the format.")]
    inputs: Annotated[str, Field(min_length=1, description="Name of the input array; its first axis is samples.")] = (
        "inputs"
    )
    labels: Annotated[str, Field(min_length=1, description="Name of the integer label array.")] = "labels"
    validation_fraction: Held = 0.1


class Text(Record):
    """Text files read as bytes: 256 symbols, no tokenizer, cut into sequences of equal length."""

    path: Annotated[
        str,
        Field(
            min_length=1,
            description="File or folder in the pod. $(PYTHON_STDLIB) stands for the image's Python standard library.",
        ),
    ]
    pattern: Annotated[str, Field(min_length=1, description="Which files of a folder, as a glob.")] = "**/*.py"
    sequence_length: Annotated[int, Field(ge=2, description="Tokens per sample.")]
    validation_fraction: Held = 0.05


class Tokens(Record):
    """One file of token ids, little-endian, no header, read through the page cache."""

    path: Annotated[str, Field(min_length=1, description="File in the pod.")]
    dtype: Annotated[Literal["uint16", "uint32"], Field(description="Type of one token id.")] = "uint16"
    vocabulary: Annotated[int, Field(ge=2, description="Number of distinct tokens; every id is below it.")]
    sequence_length: Annotated[int, Field(ge=2, description="Tokens per sample.")]
    validation_fraction: Held = 0.01


class Data(OneOf):
    """What the model is trained on. Set exactly one key."""

    digits: Annotated[Digits | None, Field(description="The UCI handwritten digits shipped with scikit-learn.")] = None
    arrays: Annotated[Arrays | None, Field(description="Labelled arrays from npz, HDF5 or Zarr.")] = None
    text: Annotated[Text | None, Field(description="Text files, byte by byte.")] = None
    tokens: Annotated[Tokens | None, Field(description="A file of token ids.")] = None


LearningRate = Annotated[float, Field(gt=0.0, description="Peak learning rate; the schedule scales it.")]
WeightDecay = Annotated[
    float, Field(ge=0.0, description="Decoupled weight decay, on matrices and kernels only (not on gains or biases).")
]


class AdamW(Record):
    """AdamW (Loshchilov and Hutter, 2019), decay scaled by the learning rate."""

    learning_rate: LearningRate
    beta1: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the first moment.")] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the second moment.")] = 0.999
    epsilon: Annotated[float, Field(gt=0.0, description="Added to the root of the second moment.")] = 1e-8
    weight_decay: WeightDecay = 0.01


class Sgd(Record):
    """Stochastic gradient descent with momentum."""

    learning_rate: LearningRate
    momentum: Annotated[float, Field(ge=0.0, lt=1.0, description="Momentum; 0 is plain SGD.")] = 0.9
    nesterov: Annotated[bool, Field(description="Use Nesterov's form of momentum.")] = False
    weight_decay: WeightDecay = 0.0


class Optimizer(OneOf):
    """The optimizer. Set exactly one key."""

    adamw: Annotated[AdamW | None, Field(description="AdamW.")] = None
    sgd: Annotated[Sgd | None, Field(description="SGD with momentum.")] = None


WarmupSteps = Annotated[int, Field(ge=0, description="Steps of linear warm-up from 0 to the peak learning rate.")]


class Constant(Record):
    """The peak learning rate throughout, after the warm-up."""

    warmup_steps: WarmupSteps = 0


class Cosine(Record):
    """Half a cosine from the peak to `finalFraction` of it over the steps left after the warm-up."""

    warmup_steps: WarmupSteps = 0
    final_fraction: Annotated[Fraction, Field(description="Learning rate at the end, as a share of the peak.")] = 0.0


class Schedule(OneOf):
    """How the learning rate moves over the steps. Set exactly one key."""

    constant: Annotated[Constant | None, Field(description="Constant after a warm-up.")] = None
    cosine: Annotated[Cosine | None, Field(description="Cosine decay after a warm-up.")] = None


class Evaluation(Record):
    """When the model is measured on the held-out samples. The last step is always evaluated."""

    every_steps: Annotated[int, Field(ge=1, description="Steps between two evaluations.")]


class Training(Record):
    """Length, batch, precision and randomness of the run. None of it depends on the number of workers."""

    model_config = cel(("has(self.steps) != has(self.epochs)", "'set exactly one of steps, epochs'"))

    steps: Annotated[Positive | None, Field(description="Optimizer steps. Set this or epochs.")] = None
    epochs: Annotated[Positive | None, Field(description="Passes over the training samples. Set this or steps.")] = None
    global_batch_size: Annotated[
        int, Field(ge=1, description="Samples per optimizer step over all workers; virtualRanks must divide it.")
    ]
    virtual_ranks: Annotated[
        Positive | None,
        Field(
            description="Slices the global batch is always cut into. A number of workers is valid when it divides "
            "virtualRanks, so data order and batch stay the same at every size. Left out: workers.max."
        ),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16"],
        Field(description="Arithmetic of the forward and backward pass; master weights are fp32."),
    ] = "fp32"
    gradient_clip: Annotated[
        float | None, Field(gt=0.0, description="Largest global L2 norm of the gradient. Left out: no clipping.")
    ] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights and data order.")] = 0
    evaluation: Annotated[Evaluation | None, Field(description="Left out: evaluated only after the last step.")] = None
    log_every_steps: Annotated[int, Field(ge=1, description="Steps between two reports of loss and throughput.")] = 10

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps, epochs")
        return self


class Interval(OneOf):
    """How often a checkpoint is saved. Set exactly one key."""

    steps: Annotated[Positive | None, Field(description="Optimizer steps between two saves.")] = None
    seconds: Annotated[Positive | None, Field(description="Seconds between two saves.")] = None


class Best(Record):
    """The checkpoints that did best by one metric."""

    metric: Annotated[
        str, Field(min_length=1, description="A metric of status.metrics, such as accuracy or validation_loss.")
    ]
    mode: Annotated[Literal["max", "min"], Field(description="Whether more or less of the metric is better.")]
    keep: Annotated[int, Field(ge=1, description="How many of the best to keep.")] = 1


class Retention(Record):
    """Which committed checkpoints are kept: those that any of these rules names, and those pinned by
    `capstan checkpoint pin`. The two newest verified ones are never removed."""

    last: Annotated[int, Field(ge=2, description="How many of the newest checkpoints to keep.")] = 3
    every_steps: Annotated[
        Positive | None, Field(description="Also keep every checkpoint whose step is a multiple of this.")
    ] = None
    best: Annotated[Best | None, Field(description="Also keep the best by a metric.")] = None
    newer_than_seconds: Annotated[
        Positive | None, Field(description="Also keep what was committed within so many seconds.")
    ] = None


VerifyLevel = Literal["manifest", "sampled", "full"]


class Verification(Record):
    """What is checked before a checkpoint is believed."""

    level: Annotated[
        VerifyLevel,
        Field(
            description="full hashes every byte that is read, as it is read; sampled a random part of each file; "
            "manifest only names, sizes and digests of digests."
        ),
    ] = "full"
    public_key: Annotated[
        str | None,
        Field(
            min_length=1,
            description="PEM of an ECDSA public key. Given: only checkpoints signed with its private key are used.",
        ),
    ] = None


NumericalAction = Literal["ignore", "rewind", "halt"]


class LossSpike(Record):
    """A loss far above what it was."""

    factor: Annotated[
        float, Field(gt=1.0, description="A loss above factor x the median of the recent losses is a spike.")
    ]
    window: Annotated[int, Field(ge=5, le=1000, description="How many recent steps the median is taken of.")] = 50
    action: Annotated[
        NumericalAction,
        Field(description="ignore reports it; rewind goes back to the last checkpoint and leaves the batch out."),
    ] = "rewind"


class Numerical(Record):
    """What to do when the arithmetic goes wrong."""

    non_finite: Annotated[
        NumericalAction,
        Field(
            description="A loss or gradient that is NaN or infinite: ignore drops that update, rewind goes back to the "
            "last checkpoint and leaves the batch out, halt ends the job."
        ),
    ] = "halt"
    loss_spike: Annotated[LossSpike | None, Field(description="Left out: the loss may jump.")] = None
    skip_steps: Annotated[
        int, Field(ge=1, le=10000, description="Batches left out from the bad one on, after a rewind.")
    ] = 1
