"""A Kubernetes API server on loopback, as far as RayJobs go: HTTPS, a token, create and get, and names taken once."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.check.documents import read_documents
from cluster.check.kubernetes import kubernetes_findings

NAMESPACE = "latents"
TOKEN = "the token of latents-reencode"


class KubernetesApi:
    """Runs until it is closed. `account` is the folder that a pod would find its token and the server's CA in."""

    def __init__(self, folder: Path) -> None:
        self.account = folder / "account"
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.fails_with: tuple[int, str] | None = None
        self.before_create: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        trust_chain = write_certificates(folder)
        self.account.mkdir()
        (self.account / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
        (self.account / "token").write_text(TOKEN + "\n")
        (self.account / "namespace").write_text(NAMESPACE)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(trust_chain)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._server.server_port),
        }
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ends(self, name: str, state: str, reason: str = "") -> None:
        """What the operator would write into the job's status."""
        self.jobs[name]["status"] = {"jobDeploymentStatus": state, "reason": reason}

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Mapping[str, Any]]:
        self.asked.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized", "Unauthorized")
        if self.fails_with:
            return _status(self.fails_with[0], "Failure", self.fails_with[1])
        found = re.fullmatch(r"/apis/ray\.io/v1/namespaces/([^/]+)/rayjobs(?:/([^/]+))?", path)
        if found is None:
            return _status(404, "NotFound", "the server could not find the requested resource")
        namespace, name = found.groups()
        if namespace != NAMESPACE or (method, bool(name)) not in (("GET", True), ("POST", False)):
            verb = {"GET": "list", "POST": "create"}.get(method, method.lower())
            return _status(403, "Forbidden", f"rayjobs.ray.io is forbidden: cannot {verb} resource in {namespace}")
        if method == "GET":
            job = self.jobs.get(name)
            return (200, job) if job else _status(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        return self._create(json.loads(body))

    def _create(self, job: dict[str, Any]) -> tuple[int, Mapping[str, Any]]:
        self.before_create()
        name = job["metadata"]["name"]
        if job["metadata"].get("namespace", NAMESPACE) != NAMESPACE:
            return _status(400, "BadRequest", "the namespace of the object does not match the request")
        faults = rayjob_faults(job)
        if faults:
            return _status(422, "Invalid", f'RayJob.ray.io "{name}" is invalid: {"; ".join(faults)}')
        with self._lock:
            if name in self.jobs:
                return _status(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
            self.jobs[name] = job
        return 201, job


def _handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = api.answer(self.command, self.path, self.headers.get("Authorization"), body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _status(code: int, reason: str, message: str) -> tuple[int, Mapping[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}


def write_certificates(folder: Path) -> Path:
    """A CA of its own as `ca.crt`; returns a file with a key and a certificate by it, for 127.0.0.1."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = x509.BasicConstraints(ca=True, path_length=None)
    ca = _certificate(ca_name, ca_name, ca_key, ca_key, authority)
    certificate = _certificate(name, ca_name, key, ca_key, address)
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain = folder / "server.pem"
    chain.write_bytes(private + certificate.public_bytes(pem))
    return chain


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signed_by: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    day = datetime.timedelta(days=1)
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    return builder.add_extension(extension, critical=False).sign(signed_by, hashes.SHA256())


def rayjob_faults(job: Any) -> list[str]:
    """What KubeRay's schema has against a RayJob, strictly: unknown keys, too."""
    documents, findings = read_documents("request.json", json.dumps(job))
    findings += [finding for document in documents for finding in kubernetes_findings(document)]
    return [f"{finding.where}: {finding.reason}" for finding in findings]
