"""The dashboard of a TrainingJob."""

from dashboard_panels import Dashboard, Panel, Variable

_JOB = 'namespace="$namespace", capstan_dev_job="$job"'

TRAINING = Dashboard(
    uid="capstan-training",
    title="Capstan / Training",
    description="One TrainingJob: how far it is, how well it learns, how fast, and how safe its steps are.",
    variables=[
        Variable("namespace", "Namespace", "label_values(capstan_trainer_fence, namespace)"),
        Variable("job", "Job", 'label_values(capstan_trainer_fence{namespace="$namespace"}, capstan_dev_job)'),
    ],
    rows={
        "At a glance": [
            Panel(
                "Progress",
                "Steps done of all.",
                {"": f"max(capstan_trainer_step{{{_JOB}}}) / max(capstan_trainer_steps{{{_JOB}}})"},
                unit="percentunit",
                kind="stat",
                width=4,
            ),
            Panel(
                "Workers",
                "Processes in the world.",
                {"": f"max(capstan_trainer_world_size{{{_JOB}}})"},
                kind="stat",
                width=4,
            ),
            Panel(
                "Newest checkpoint",
                "Age of the newest committed one: what a failure now would cost at most.",
                {"": f"time() - max(capstan_trainer_checkpoint_timestamp_seconds{{{_JOB}}})"},
                unit="s",
                kind="stat",
                width=4,
                colours=((None, "green"), (3600, "orange"), (7200, "red")),
            ),
            Panel(
                "Damaged checkpoints",
                "Failed verification and were passed over.",
                {"": f"max(capstan_trainer_quarantined_checkpoints{{{_JOB}}})"},
                kind="stat",
                width=4,
                colours=((None, "green"), (1, "red")),
            ),
            Panel(
                "Restarts",
                "Trainer processes started after the first, all workers together.",
                {"": f"sum(capstan_trainer_restarts_total{{{_JOB}}})"},
                kind="stat",
                width=4,
            ),
            Panel(
                "Membership",
                "Number of the newest one; grows by one with each attempt.",
                {"": f"max(capstan_trainer_fence{{{_JOB}}})"},
                kind="stat",
                width=4,
            ),
        ],
        "Learning": [
            Panel(
                "Loss",
                "Of training and, where there is one, of validation.",
                {
                    "training": f"max(capstan_trainer_loss{{{_JOB}}})",
                    "validation": f"max(capstan_trainer_validation_loss{{{_JOB}}})",
                },
            ),
            Panel("Gradient norm", "Before clipping.", {"": f"max(capstan_trainer_gradient_norm{{{_JOB}}})"}),
            Panel(
                "Accuracy",
                "On the validation set, of classifiers.",
                {"": f"max(capstan_trainer_accuracy{{{_JOB}}})"},
                unit="percentunit",
            ),
        ],
        "Speed": [
            Panel(
                "Steps",
                "Done, and in all.",
                {
                    "done": f"max(capstan_trainer_step{{{_JOB}}})",
                    "checkpoint": f"max(capstan_trainer_checkpoint_step{{{_JOB}}})",
                    "in all": f"max(capstan_trainer_steps{{{_JOB}}})",
                },
            ),
            Panel(
                "Seconds of a step",
                "Of each worker. One that is slower than its peers holds them all up.",
                {"{{pod}}": f"capstan_trainer_step_seconds{{{_JOB}}}"},
                unit="s",
            ),
            Panel(
                "Samples per second",
                "Of the whole job.",
                {"": f"max(capstan_trainer_samples_per_second{{{_JOB}}})"},
            ),
        ],
        "Recovery": [
            Panel(
                "Phase",
                "What each worker's trainer does.",
                {"{{pod}} {{phase}}": f"capstan_trainer_phase{{{_JOB}}} == 1"},
                kind="states",
                width=12,
            ),
            Panel(
                "Seconds of this attempt",
                "By phase, all workers together.",
                {"{{phase}}": f"sum by (phase) (capstan_trainer_phase_seconds{{{_JOB}}})"},
                unit="s",
                width=12,
                is_stacked=True,
            ),
            Panel(
                "Seconds of the last restore",
                "Of each worker, by where its state came from.",
                {"{{pod}} {{source}}": f"capstan_trainer_restore_seconds{{{_JOB}}}"},
                unit="s",
            ),
            Panel(
                "Read at the last restore",
                "By each worker.",
                {"{{pod}} {{source}}": f"capstan_trainer_restored_bytes{{{_JOB}}}"},
                unit="bytes",
            ),
            Panel(
                "Micro-steps",
                "For the samples of one virtual rank: doubled each time memory ran out.",
                {"": f"max(capstan_trainer_micro_splits{{{_JOB}}})"},
            ),
        ],
    },
)
