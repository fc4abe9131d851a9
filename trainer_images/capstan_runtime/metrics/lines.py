"""The lines of a pod's log that people read."""

from collections.abc import Mapping


def progress_line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """`step 120/560  loss 0.1832  accuracy 0.961  3,412 samples/s  lr 9.1e-04`; absent metrics leave no gap."""
    shown = [f"step {step:>{len(str(steps))}}/{steps}"]
    shown += [f"{name} {metrics[name]:.4f}" for name in ("loss", "validation_loss") if name in metrics]
    if "accuracy" in metrics:
        shown.append(f"accuracy {metrics['accuracy']:.3f}")
    for name, unit in (("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s")):
        if name in metrics:
            shown.append(f"{metrics[name]:,.0f} {unit}")
    if "mfu" in metrics:
        shown.append(f"MFU {metrics['mfu']:.1%}")
    if "learning_rate" in metrics:
        shown.append(f"lr {metrics['learning_rate']:.1e}")
    return "  ".join(shown).replace("validation_loss", "validation loss")
