"""Every feature, in Flax (whole and fully sharded) and at every ZeRO stage: refused with the reason, or it survives.

The whole matrix takes many minutes and runs in `make test-full`. `make test` takes a sample of cells and of
combinations, another one each time: CAPSTAN_SAMPLE_SEED repeats one that failed.
"""

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.contract.chaos import Fault, Injection
from tests.support.attempts import Attempted, attempt
from tests.support.features import (
    SEED,
    STEPS,
    VARIANTS,
    Document,
    Feature,
    FeatureRun,
    cells,
    label,
    load_features,
    refusal,
    run_config,
    spec_of,
    write_data,
)

SAMPLED_CELLS, SAMPLED_COMBINATIONS, IN_A_COMBINATION = 3, 2, 4
FEATURES = {feature.name: feature for feature in load_features()}


def losses(ranks: list[Attempted]) -> dict[int, float]:
    assert all(each.losses() == ranks[0].losses() for each in ranks), "the loss is global"
    return ranks[0].losses()


def survives(spec: Document, folder: Path) -> None:
    """An undisturbed run, and one that is killed after its first save and resumed by half as many workers."""
    config, most, fewest = run_config(spec), spec["workers"]["max"], spec["workers"]["min"]
    undisturbed = attempt(FeatureRun(folder / "undisturbed", config), most)
    assert [each.failure for each in undisturbed] == [None] * most
    whole = losses(undisturbed)
    run = FeatureRun(folder / "killed", config)
    kill: dict[str, Any] = {"chaos": [Injection(name="oom", fault=Fault.GPU_OUT_OF_MEMORY, step=STEPS // 2 + 1)]}
    killed = attempt(run, most, more=lambda rank: kill)
    assert all((each.failure or "").startswith("GpuOutOfMemory") for each in killed)
    resumed = attempt(run, fewest, fence=2, floor_step=STEPS // 2)
    assert [each.failure for each in resumed] == [None] * fewest
    found = losses(resumed)
    # Half as many workers sum in another order; what is rounded otherwise grows over the steps, with some combinations
    # beyond the 1e-5 that each feature's own test asks for.
    tolerance = 1e-4 if config.training.precision == "fp32" else 1e-2
    assert found == pytest.approx({step: whole[step] for step in range(STEPS // 2 + 1, STEPS + 1)}, rel=tolerance)


def check(base: str, variant: str, patches: list[Document], folder: Path) -> None:
    write_data(folder / "data")
    spec = spec_of(base, variant, patches, str(folder / "data"))
    reason = refusal(spec)
    if reason is not None:
        pytest.skip(f"refused: {reason}")
    survives(spec, folder)


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_to_be_had_somewhere_and_a_refusal_names_field_and_fix(name: str) -> None:
    feature = FEATURES[name]
    refusals = [refusal(spec_of(feature.base, variant, [feature.patch])) for variant in VARIANTS]
    assert None in refusals, refusals
    for reason in filter(None, refusals):
        assert re.fullmatch(r"[a-zA-Z.]+: [^\n]+[;:,] [^\n]+", reason), reason


def sampled_cells() -> list[tuple[Feature, str]]:
    chance = random.Random(SEED)
    possible = [
        (feature, variant)
        for feature, variant in cells()
        if refusal(spec_of(feature.base, variant, [feature.patch])) is None
    ]
    return chance.sample(possible, min(SAMPLED_CELLS, len(possible)))


def sampled_combinations() -> list[tuple[str, str, tuple[str, ...]]]:
    """Base, variant and features that the schema accepts together."""
    chance = random.Random(SEED)
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for _ in range(1000):
        if len(found) == SAMPLED_COMBINATIONS:
            break
        base, variant = chance.choice(["mlp", "cnn", "transformer"]), chance.choice(list(VARIANTS))
        names = [name for name, feature in FEATURES.items() if feature.base == base or not needs_base(feature)]
        chosen = tuple(sorted(chance.sample(names, min(IN_A_COMBINATION, len(names)))))
        spec = spec_of(base, variant, [FEATURES[name].patch for name in chosen])
        if not collide(chosen) and refusal(spec) is None:
            found.append((base, variant, chosen))
    return found


def needs_base(feature: Feature) -> bool:
    """Whether it asks for a kind of data, or of model, which the schema alone cannot tell."""
    return bool({"model", "data", "augmentation", "regularization", "loss"} & feature.patch.keys())


def collide(names: tuple[str, ...]) -> bool:
    """Whether two of them set the same field."""
    paths = [set(leaves(FEATURES[name].patch)) for name in names]
    return any(
        left[: len(right)] == right or right[: len(left)] == left
        for one, other in itertools.combinations(paths, 2)
        for left in one
        for right in other
    )


def leaves(patch: Document, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of what is set; a choice of one is one place, whatever is chosen."""
    found: list[tuple[str, ...]] = []
    for name, value in patch.items():
        is_choice = not prefix and name in ("optimizer", "schedule", "data", "loss")
        found += (
            leaves(value, (*prefix, name)) if isinstance(value, dict) and value and not is_choice else [(*prefix, name)]
        )
    return found


@pytest.mark.parametrize(("feature", "variant"), sampled_cells(), ids=label)
def test_a_sampled_feature_survives_a_kill_and_another_world(feature: Feature, variant: str, tmp_path: Path) -> None:
    print(f"CAPSTAN_SAMPLE_SEED={SEED}")
    check(feature.base, variant, [feature.patch], tmp_path)


@pytest.mark.parametrize(("base", "variant", "names"), sampled_combinations(), ids=lambda each: str(each))
def test_a_sampled_combination_survives_a_kill_and_another_world(
    base: str, variant: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    print(f"CAPSTAN_SAMPLE_SEED={SEED}")
    check(base, variant, [FEATURES[name].patch for name in names], tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(("feature", "variant"), list(cells()), ids=label)
def test_every_feature_survives_a_kill_and_another_world(feature: Feature, variant: str, tmp_path: Path) -> None:
    check(feature.base, variant, [feature.patch], tmp_path)
