"""With a public key only what its owner signed counts: for a reader, and for what may be removed."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import MANIFEST, QUARANTINED, SHARDS, SIGNATURE
from capstan_runtime.checkpoint.marks import mark_verified
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.checkpoint.retention import Retention, Rules
from capstan_runtime.checkpoint.signing import NotSigned, sign_manifest
from capstan_runtime.contract import saving
from capstan_runtime.contract.state import Checkpoint, Quarantine
from tests.support.checkpoints import RUN, choose, folder_of, save, steps_in


def sign(store: Path, checkpoint: Checkpoint, key: ec.EllipticCurvePrivateKey) -> None:
    pem = store / "key.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    folder = folder_of(store, checkpoint.root)
    (folder / SIGNATURE).write_bytes(sign_manifest((folder / MANIFEST).read_bytes(), pem))


def public_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_what_is_not_signed_is_not_read_beyond_its_manifest(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    save(tmp_path, 20)
    unsigned = list_candidates(FolderStore(tmp_path), RUN).candidates[0].name
    signed = save(tmp_path, 10)
    sign(tmp_path, signed, key)
    told: list[Quarantine] = []

    class Watched(FolderStore):
        def get(self, key: str) -> bytes:
            assert not key.startswith(f"{unsigned}/{SHARDS}/"), "nothing that a stranger's manifest names is read"
            return super().get(key)

    chosen = choose(Watched(tmp_path), quarantined=told, public_key=public_text(key))
    assert chosen is not None
    assert (chosen.root, [each.step for each in told]) == (signed.root, [20])
    assert "is not signed" in told[0].reason
    with pytest.raises(NotSigned):
        open_checkpoint(Watched(tmp_path), unsigned, public_text(key))


def test_what_is_not_signed_is_no_proof_that_older_ones_may_go(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    store = FolderStore(tmp_path)
    for step in (10, 20, 30):
        sign(tmp_path, save(tmp_path, step), key)
    for step in (40, 50, 60):
        root = save(tmp_path, step).root
        mark_verified(store, list_candidates(store, RUN).candidates[0].name, root, at=1.0)

    def fail(message: object) -> None:
        raise AssertionError(message)

    rules = Rules(store, RUN, 9, saving.Retention(last=2), "full", public_text(key))
    for _ in range(2):
        Retention(rules, lambda _: None, fail, fail).sweep()
        assert steps_in(tmp_path) == [60, 50, 30, 20]


def test_with_a_public_key_only_what_its_owner_signed_is_resumed_from_and_nothing_is_marked(tmp_path: Path) -> None:
    ours, theirs = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signed, unsigned, forged = save(tmp_path, 10), save(tmp_path, 20), save(tmp_path, 30)
    sign(tmp_path, signed, ours)
    sign(tmp_path, forged, theirs)
    public = public_text(ours)
    told: list[Quarantine] = []
    chosen = choose(tmp_path, quarantined=told, public_key=public)
    assert chosen is not None
    assert chosen.root == signed.root
    assert [(each.step, each.root) for each in told] == [(30, forged.root), (20, unsigned.root)]
    assert "is not a signature of MANIFEST.json by this key" in told[0].reason
    assert "is not signed" in told[1].reason
    assert list(tmp_path.rglob(QUARANTINED)) == []
    without = choose(tmp_path, fence=3)
    assert without is not None
    assert without.root == forged.root
