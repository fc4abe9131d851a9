"""The order of work in a pipeline, played through with neighbours that wait for each other."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.contract.models import Model
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.model_spec import parameter_table
from capstan_runtime.parallel.stages import Action, Backward, Forward, Stage, Swap, one_forward_one_backward

COUNTS = st.integers(1, 6)


def play(count: int, micro_steps: int) -> list[list[Forward | Backward]]:
    """The passes of each stage in their order. Two neighbours swap only at once, what is the next for both."""
    waiting: list[list[Action]] = [
        [*one_forward_one_backward(Stage(number, count), micro_steps)] for number in range(count)
    ]
    done: list[list[Forward | Backward]] = [[] for _ in range(count)]
    while any(waiting):
        before = sum(map(len, waiting))
        for actions, passes in zip(waiting, done, strict=True):
            while actions and not isinstance(actions[0], Swap):
                passes.append(actions.pop(0))
        for one, next_one in pairwise(waiting):
            match one[:1], next_one[:1]:
                case [Swap(True, gives, takes)], [Swap(False, gives_back, takes_on)]:
                    assert (gives, takes) == (takes_on, gives_back)
                    one.pop(0)
                    next_one.pop(0)
        assert sum(map(len, waiting)) < before, f"all wait for each other: {[actions[:1] for actions in waiting]}"
    return done


@given(COUNTS, st.integers(1, 12))
def test_every_stage_makes_both_passes_of_every_micro_step_in_order_and_keeps_few(count: int, micro_steps: int) -> None:
    for number, passes in enumerate(play(count, micro_steps)):
        assert [each.micro_step for each in passes if isinstance(each, Forward)] == [*range(micro_steps)]
        assert [each.micro_step for each in passes if isinstance(each, Backward)] == [*range(micro_steps)]
        kept = [sum(1 if isinstance(each, Forward) else -1 for each in passes[:end]) for end in range(1, len(passes))]
        assert max(kept) == min(count - number, micro_steps), "no more than there are stages from here on"


@given(COUNTS, st.integers(1, 4), st.booleans())
def test_stages_divide_all_parameters_of_a_decoder_among_them(count: int, each: int, is_tied: bool) -> None:
    layers = count * each
    model = Model.parse({"transformer": {"layers": layers, "dim": 16, "heads": 2, "tied": is_tied}})
    names = [spec.name for spec in parameter_table(model, DataSpec("tokens", (8,), 32, "blake3:none"))]
    stages = [Stage(number, count) for number in range(count)]
    held = [[name for name in names if stage.has(name, layers, is_tied=is_tied)] for stage in stages]
    assert [number for stage in stages for number in stage.numbers(layers)] == [*range(layers)]
    assert held[0][0] == "embed.weight"
    if is_tied and count > 1:
        assert held[-1].pop(0) == "embed.weight", "which is the head"
    assert [name for names_of_stage in held for name in names_of_stage] == names, "one after the other"
    assert held[-1][-1] == ("norm.weight" if is_tied else "head.weight")
