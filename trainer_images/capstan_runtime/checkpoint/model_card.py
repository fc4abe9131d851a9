"""The README of converted weights: what they are, and where every byte of them comes from."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capstan_runtime.checkpoint.manifest import Manifest


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One safetensors file."""

    name: str
    size: int
    """In bytes."""
    digest: str
    """`blake3:<hex>` of the whole file, as b3sum prints it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """The checkpoint that was converted."""

    root: str
    manifest: Manifest
    with_optimizer: bool

    def labels(self) -> dict[str, str]:
        """What goes into every file's own metadata."""
        manifest = self.manifest
        return {
            "capstan.root": self.root,
            "capstan.logical": manifest.logical,
            "capstan.job": manifest.job,
            "capstan.run": manifest.run,
            "capstan.step": str(manifest.step),
        }


def model_card(provenance: Provenance, files: Sequence[WrittenFile], elements: int) -> str:
    """Markdown with a front matter that model hubs read. `elements`: of all tensors that were written."""
    manifest = provenance.manifest
    trainer = manifest.trainer
    saved = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest.created_at))
    contents = "moving average of the parameters" if manifest.has_average else "parameters"
    if provenance.with_optimizer:
        contents += " and the run's other state" if manifest.has_average else " and optimizer state"
    if manifest.has_integers:
        contents += (
            ", matrices and kernels as integers (of uint8 each holds two of 4 bits, the first in the lower half), each "
            "times the scale of its output channel in `<name>.scales`"
        )
    data = f"`{trainer.data_fingerprint}`" if trainer.data_fingerprint else "the program's own"
    facts = {
        **_model(manifest),
        "Job": f"`{manifest.job}`",
        "Run": f"`{manifest.run}`",
        "Step": f"{manifest.step:,}",
        "Samples seen": f"{manifest.step * trainer.global_batch_size:,} in batches of {trainer.global_batch_size}",
        "Saved": f"{saved} by {manifest.framework} on {manifest.world} rank{'s' if manifest.world > 1 else ''}",
        "Checkpoint (root)": f"`{provenance.root}`",
        "Checkpoint before it": f"`{manifest.parent}`" if manifest.parent else "none, the first of its run",
        "State (logical digest)": f"`{manifest.logical}`",
        "Data": f"{data}, seed {trainer.seed}, order of version {trainer.plan_version}",
        "Batches left out": ", ".join(f"{skip.count} from {skip.first} on" for skip in trainer.skips) or "none",
    }
    metrics = manifest.figures
    sections = (
        _front_matter(manifest),
        f"# {manifest.job}, step {manifest.step:,}",
        f"{elements:,} elements: {contents} of one checkpoint, whole tensors in plain safetensors. Every byte was "
        "compared with the digests of that checkpoint while it was copied.",
        _table(("Provenance", ""), facts.items()),
        _table(("Metric", "Value"), ((f"`{name}`", f"{value:.6g}") for name, value in sorted(metrics.items()))),
        _table(
            ("File", "Bytes", "BLAKE3"), ((f"`{file.name}`", f"{file.size:,}", f"`{file.digest}`") for file in files)
        ),
        "```python\nfrom safetensors.numpy import load_file  # or safetensors.torch, safetensors.flax\n\n"
        f'weights = load_file("{files[0].name}")\n```',
    )
    return "\n\n".join(sections) + "\n"


def _model(manifest: Manifest) -> dict[str, str]:
    """Nothing of a checkpoint that was saved before there were signatures."""
    signature = manifest.signature
    return {} if signature is None else {"Model": f"`{signature.architecture}`", "Task": signature.task}


def _front_matter(manifest: Manifest) -> str:
    """YAML; JSON strings are YAML, whatever a job is called."""
    return "\n".join(
        ("---", "library_name: safetensors", f"tags: {json.dumps(['capstan', manifest.framework])}", "---")
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
