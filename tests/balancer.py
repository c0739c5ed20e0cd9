"""What may stand before a Kubernetes API: an endpoint of TLS, which breaks connections off."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from unirg.cluster import Cluster


class Balancer(threading.Thread):
    """TLS before an API that answers every request alike; the first handshakes break off."""

    def __init__(self, folder: Path, breaks: int) -> None:
        super().__init__(daemon=True)
        self.certificate, self.breaks, self.connections = folder / "balancer.pem", breaks, 0
        _certify(self.certificate)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.start()

    def run(self) -> None:
        answer = b'{"metadata": {"name": "one"}}'
        while True:
            connection, _ = self.socket.accept()
            self.connections += 1
            with connection, suppress(OSError):
                if self.connections <= self.breaks:
                    connection.recv(2**16)
                    continue
                with self.context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(2**16)
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
                    secured.sendall(head % len(answer) + answer)

    def api(self, trusted: Path | None) -> Cluster:
        from kubernetes import client

        host = f"https://127.0.0.1:{self.socket.getsockname()[1]}"
        settings = client.Configuration(host=host)
        settings.ssl_ca_cert = trusted and str(trusted)
        return Cluster("unirg", lambda: client.ApiClient(settings), patience_s=5, pause_s=0.01)


def _certify(path: Path) -> None:
    """A key and its own certificate for loopback."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, *plain) + made.public_bytes(pem))
