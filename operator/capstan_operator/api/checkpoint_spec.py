"""Where, how often and how carefully a job is saved."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_operator.api.store import Store
from capstan_runtime.contract.base import Record, cel
from capstan_runtime.contract.saving import Interval, Retention, Verification


class Signing(Record):
    """Signs the manifest of every checkpoint."""

    secret_name: Annotated[
        str,
        Field(
            min_length=1,
            description="Secret in the job's namespace whose key private.pem holds an ECDSA private key.",
        ),
    ]


_PEM = "-----BEGIN PUBLIC KEY-----"


class CheckpointSpec(Record):
    """Where, how often and how carefully the run is saved."""

    # A run that cannot take its own checkpoints back would end with its first restart.
    model_config = cel(
        (
            "!has(self.verify) || !has(self.verify.publicKey) || has(self.sign)",
            "'verify.publicKey takes only what is signed, and nothing signs: set sign, or remove publicKey'",
        ),
        (
            f"!has(self.verify) || !has(self.verify.publicKey) || self.verify.publicKey.startsWith('{_PEM}')",
            f"'verify.publicKey does not begin with {_PEM}: give the PEM of an ECDSA public key'",
        ),
    )

    store: Annotated[Store, Field(description="Where checkpoints are kept.")]
    interval: Annotated[Interval, Field(description="How often to save.")] = Interval(seconds=600)
    retention: Annotated[Retention, Field(description="What to keep.")] = Retention()
    verify: Annotated[Verification, Field(description="What is checked before a resume.")] = Verification()
    sign: Annotated[Signing | None, Field(description="Left out: checkpoints are hashed, not signed.")] = None

    @model_validator(mode="after")
    def _takes_back_what_it_saves(self) -> Self:
        key = self.verify.public_key
        if key is not None and self.sign is None:
            raise ValueError(
                "verify.publicKey takes only what is signed, and nothing signs: set sign, or remove publicKey"
            )
        if key is not None and not key.startswith(_PEM):
            raise ValueError(f"verify.publicKey does not begin with {_PEM}: give the PEM of an ECDSA public key")
        return self
