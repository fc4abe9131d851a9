"""A certificate authority, and Secrets of type kubernetes.io/tls as a kubelet mounts them."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Kind = Literal["ec", "rsa"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Pair:
    certificate: bytes
    key: bytes
    serial: int

    @property
    def files(self) -> dict[str, bytes]:
        return {"tls.crt": self.certificate, "tls.key": self.key}


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority")
        builder = _builder(self._name, self._name, self._key)
        constraint = x509.BasicConstraints(ca=True, path_length=0)
        self.certificate = builder.add_extension(constraint, critical=True).sign(self._key, hashes.SHA256())

    def issue(self, *addresses: str, names: tuple[str, ...] = (), kind: Kind = "ec") -> Pair:
        """A new key and its certificate for these addresses and names."""
        key: PrivateKey = (
            ec.generate_private_key(ec.SECP256R1())
            if kind == "ec"
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )
        known = [
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
            *(x509.DNSName(name) for name in names),
        ]
        builder = _builder(_name("server"), self._name, key)
        certificate = builder.add_extension(x509.SubjectAlternativeName(known), critical=False).sign(
            self._key, hashes.SHA256()
        )
        return Pair(pem_of(certificate), pem_of_key(key), certificate.serial_number)

    def client(self) -> ssl.SSLContext:
        """Of a client that trusts this authority and nobody else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem_of(self.certificate).decode())
        return context


class MountedSecret:
    """Its files are links through `..data`, which is swapped at once when the Secret changes."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        folder.mkdir()
        self.folder = folder
        self._version = 0
        self.swap(files)

    def swap(self, files: dict[str, bytes]) -> None:
        self._version += 1
        content = self.folder / f"..{self._version}"
        content.mkdir()
        for name, data in files.items():
            (content / name).write_bytes(data)
        link = self.folder / "..data_tmp"
        link.symlink_to(content.name)
        link.rename(self.folder / "..data")
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def pem_of_key(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def serial_of(connection: ssl.SSLSocket) -> int:
    """Of the certificate that the server showed."""
    der = connection.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
