"""A signature holds for one manifest and one key; everything else is refused in one line."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from capstan_runtime.checkpoint.signing import NotSigned, check_signature, sign_manifest
from capstan_runtime.errors import ConfigError

MANIFEST = b'{"format":"capstan-checkpoint/2","step":10}'


def written(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, path: Path, password: bytes | None = None) -> Path:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection))
    return path


def public_text(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(scope="module")
def ours() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def key_file(ours: ec.EllipticCurvePrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(ours, tmp_path_factory.mktemp("keys") / "private.pem")


@pytest.fixture(scope="module")
def signature(key_file: Path) -> bytes:
    return sign_manifest(MANIFEST, key_file)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_what_a_key_signed_its_public_half_accepts(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    key = ec.generate_private_key(curve)
    check_signature(MANIFEST, sign_manifest(MANIFEST, written(key, tmp_path / "key.pem")), public_text(key))


def test_a_manifest_without_a_signature_is_refused(ours: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(NotSigned, match=r"MANIFEST\.json: is not signed"):
        check_signature(MANIFEST, None, public_text(ours))


def test_another_key_s_signature_is_refused(signature: bytes) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(NotSigned, match="by this key"):
        check_signature(MANIFEST, signature, public_text(stranger))


def test_another_key_s_signature_that_claims_to_be_ours_is_refused(
    ours: ec.EllipticCurvePrivateKey, signature: bytes, tmp_path: Path
) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    forged = json.loads(sign_manifest(MANIFEST, written(stranger, tmp_path / "key.pem")))
    forged["verificationMaterial"] = json.loads(signature)["verificationMaterial"]
    with pytest.raises(NotSigned):
        check_signature(MANIFEST, json.dumps(forged).encode(), public_text(ours))


def test_every_changed_byte_of_the_manifest_is_noticed(ours: ec.EllipticCurvePrivateKey, signature: bytes) -> None:
    public = public_text(ours)
    for at in range(len(MANIFEST)):
        changed = bytearray(MANIFEST)
        changed[at] ^= 1
        with pytest.raises(NotSigned):
            check_signature(bytes(changed), signature, public)


def test_the_signature_of_another_manifest_is_refused(ours: ec.EllipticCurvePrivateKey, key_file: Path) -> None:
    with pytest.raises(NotSigned):
        check_signature(MANIFEST, sign_manifest(MANIFEST.replace(b"10", b"20"), key_file), public_text(ours))


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: bundle.update(mediaType="text/plain"),
        lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
        lambda bundle: bundle["dsseEnvelope"].update(payload=""),
        lambda bundle: bundle["dsseEnvelope"].update(
            payload=base64.b64encode(
                base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"sha256", b"sha512")
            ).decode()
        ),
        lambda bundle: bundle.pop("dsseEnvelope"),
        lambda bundle: bundle.pop("verificationMaterial"),
    ],
)
def test_a_mangled_signature_is_refused(change: object, ours: ec.EllipticCurvePrivateKey, signature: bytes) -> None:
    bundle = json.loads(signature)
    change(bundle)  # type: ignore[operator]
    with pytest.raises(NotSigned):
        check_signature(MANIFEST, json.dumps(bundle).encode(), public_text(ours))


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b"{" * 100_000, b" " * (1 << 21)])
def test_what_is_no_signature_at_all_is_refused(junk: bytes, ours: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(NotSigned):
        check_signature(MANIFEST, junk, public_text(ours))


def test_a_private_key_that_cannot_sign_is_a_configuration_error(tmp_path: Path) -> None:
    unfit = {
        "missing": tmp_path / "missing.pem",
        "RSA": written(rsa.generate_private_key(65537, 2048), tmp_path / "rsa.pem"),
        "curve": written(ec.generate_private_key(ec.SECP256K1()), tmp_path / "k1.pem"),
        "locked": written(ec.generate_private_key(ec.SECP256R1()), tmp_path / "locked.pem", b"secret"),
    }
    (tmp_path / "junk.pem").write_text("no key")
    for path in (*unfit.values(), tmp_path / "junk.pem", tmp_path):
        with pytest.raises(ConfigError, match=r"CAPSTAN_SIGNING_KEY: .* is not an ECDSA private key"):
            sign_manifest(MANIFEST, path)


def test_a_public_key_that_is_none_is_a_configuration_error(signature: bytes) -> None:
    for text in ("", "no key", public_text(rsa.generate_private_key(65537, 2048))):
        with pytest.raises(ConfigError, match=r"checkpoint\.verify\.publicKey: is not an ECDSA public key"):
            check_signature(MANIFEST, signature, text)


def test_without_the_library_the_message_says_what_to_install(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match=r"pip install 'capstan\[sign\]'"):
        sign_manifest(MANIFEST, key_file)


def test_the_library_s_own_command_accepts_a_signed_folder(
    ours: ec.EllipticCurvePrivateKey, signature: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "000000000010.1.0123456789ab"
    folder.mkdir()
    (folder / "MANIFEST.json").write_bytes(MANIFEST)
    (folder / "MANIFEST.sig").write_bytes(signature)
    (folder / "COMMIT").write_text("not covered by this signature, but by what it covers")
    (tmp_path / "public.pem").write_text(public_text(ours))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature"]
    command += [str(folder / "MANIFEST.sig"), "--public_key", str(tmp_path / "public.pem"), "--ignore_unsigned_files"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (folder / "MANIFEST.json").write_bytes(MANIFEST + b" ")
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0
