"""What gRPC over TLS needs: the file of --ssl_config_file, read and checked."""

import dataclasses
import ssl
import tempfile
from pathlib import Path

from serve.errors import invalid_argument
from serve.text_protos import SSLConfig, read_text_proto


@dataclasses.dataclass(frozen=True)
class ServerIdentity:
    """Key and certificates, as PEM texts.

    Args:
        key: the server's private key.
        certificate: the server's certificate, and those between it and its root.
        custom_ca: the roots that clients' certificates are held against.
        client_verify: whether a client must show a certificate.
    """

    key: bytes
    certificate: bytes
    custom_ca: bytes = b""
    client_verify: bool = False


def read_identity(path: Path) -> ServerIdentity:
    """Reads an SSLConfig.

    gRPC itself would say no more of a wrong key than that it cannot bind the port.

    Raises:
        ServingError: INVALID_ARGUMENT: the file is wrong, or what it holds is no PEM, or key and
            certificate do not belong together; one line that names the file.
    """
    config = read_text_proto(path, SSLConfig)
    for name in ("server_key", "server_cert"):
        if not getattr(config, name):
            raise invalid_argument(f"{path}: {name} is missing: the PEM text itself, not a path")
    if config.client_verify and not config.custom_ca:
        raise invalid_argument(f"{path}: client_verify needs custom_ca, to hold clients against")
    identity = ServerIdentity(
        config.server_key.encode(),
        config.server_cert.encode(),
        config.custom_ca.encode(),
        config.client_verify,
    )
    _check(identity, path)
    return identity


def _check(identity: ServerIdentity, path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if identity.custom_ca:
        try:
            context.load_verify_locations(cadata=identity.custom_ca.decode())
        except ssl.SSLError as error:
            raise invalid_argument(
                f"{path}: custom_ca is no PEM certificate: {_why(error)}"
            ) from None
    # The ssl module reads these two from files only; the folder is the user's alone.
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key"), Path(folder, "certificate")
        key.write_bytes(identity.key)
        certificate.write_bytes(identity.certificate)
        try:
            # A password, so that an encrypted key is an error instead of a question.
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            raise invalid_argument(
                f"{path}: server_key and server_cert are no PEM key and certificate that belong "
                f"together: {_why(error)}"
            ) from None


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
