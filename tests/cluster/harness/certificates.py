"""A certificate authority for one cluster, and the kubeconfig files that its certificates make."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=30)


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Authority:
    """Issues certificates into a folder that holds everything secret of a cluster."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.pair = Pair(folder / "ca.crt", folder / "ca.key")
        self._key = private_key(self.pair.key)
        self._name = subject("rectrain-test-ca", [])
        usage = x509.KeyUsage(*(name in ("digital_signature", "key_cert_sign", "crl_sign") for name in KEY_USAGES))
        builder = certificate(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        write(self.pair.certificate, builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256()))

    def issue(self, name: str, user: str, *, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> Pair:
        """Issue a certificate that serves `hosts` (names and addresses) and logs in as `user` in `groups`."""
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        key = private_key(pair.key)
        builder = certificate(subject(user, groups), self._name, key.public_key())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if hosts:
            names = x509.SubjectAlternativeName([general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        write(pair.certificate, builder.sign(self._key, hashes.SHA256()))
        return pair

    def signing_keys(self, name: str) -> tuple[Path, Path]:
        """Make the key pair that signs service account tokens; returns (private, public)."""
        private, public = self.folder / f"{name}.key", self.folder / f"{name}.pub"
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(private_key(private).public_key().public_bytes(encoding, form))
        return private, public

    def kubeconfig(self, path: Path, server: str, user: Pair) -> Path:
        """Write a kubeconfig that reaches `server` as the user of a certificate."""
        cluster = {"server": server, "certificate-authority": str(self.pair.certificate)}
        login = {"client-certificate": str(user.certificate), "client-key": str(user.key)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": login}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path


KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return key


def subject(name: str, groups: Sequence[str]) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def certificate(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, name, key, x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + LIFETIME)


def write(path: Path, signed: x509.Certificate) -> None:
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
