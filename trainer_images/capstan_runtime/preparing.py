"""What a trainer needs before it knows which attempt it is part of: a warm spare has it by then."""

from collections.abc import Mapping
from dataclasses import dataclass

from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.data.augment import augmented
from capstan_runtime.data.open import open_dataset
from capstan_runtime.data.spec import Dataset
from capstan_runtime.data_check import check_of
from capstan_runtime.download import Alive, fetched
from capstan_runtime.losses import require_loss_fits
from capstan_runtime.told import read_run


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a trainer needs that is the same in every attempt."""

    run: RunConfig
    dataset: Dataset


def prepare(environ: Mapping[str, str], alive: Alive = lambda: None) -> Prepared:
    """Reads the run, and fetches and opens its data; asks for no membership. `alive` is called now and then meanwhile.
    Raises ConfigError, and StoreUnavailable for data in a bucket."""
    run = read_run(environ)
    data, seed = fetched(run.data, environ, alive), run.training.seed
    dataset = open_dataset(data, seed, environ, check_of(run, environ, alive), alive)
    require_loss_fits(run.loss, dataset.spec.outputs)
    return Prepared(run, augmented(dataset, run.augmentation, seed))
