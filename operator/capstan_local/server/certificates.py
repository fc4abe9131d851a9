"""The server's own certificate authority and serving certificate, made at first start."""

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = timedelta(days=3650)
_RENEW_BEFORE = timedelta(days=30)
_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True, slots=True)
class ServingFiles:
    """Where the certificates lie."""

    ca: Path
    certificate: Path
    key: Path


def ensure_certificates(folder: Path) -> ServingFiles:
    """The files in `folder`, made anew when there are none or they soon expire. Private keys are readable by the owner
    alone; that of the authority is thrown away once the serving certificate is signed."""
    files = ServingFiles(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    if all(path.exists() for path in (files.ca, files.certificate, files.key)) and not _expires_soon(files.certificate):
        return files
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key, ca = _make_authority()
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign_server(ca_key, ca, key)
    write_private(files.key, _private_pem(key))
    write_private(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    write_private(files.ca, ca.public_bytes(serialization.Encoding.PEM))
    return files


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one that only its owner can read; readers see the old or the new content, never a part."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def _expires_soon(certificate: Path) -> bool:
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    return loaded.not_valid_after_utc < datetime.now(UTC) + _RENEW_BEFORE


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(subject: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of containers and hosts differ a little
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _make_authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("capstan-local-ca", _name("capstan-local-ca"), key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    return key, builder.sign(key, hashes.SHA256())


def _sign_server(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    names = [*(x509.DNSName(name) for name in _NAMES), *addresses]
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder("capstan-local", ca.subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    return builder.sign(ca_key, hashes.SHA256())
