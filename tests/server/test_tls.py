"""TLS: `--ssl-certfile` and `--ssl-keyfile`, with a certificate made for the test."""

import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from lite_llama.errors import ConfigError
from lite_llama.server.config import ServeConfig
from tests.server.servers import server_process


def _certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) of localhost, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_a_client_that_trusts_the_certificate_is_answered_and_plain_http_is_not(
    tmp_path: Path,
) -> None:
    certificate, key = _certificate(tmp_path)
    flags = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    trusting = ssl.create_default_context(cafile=str(certificate))
    with server_process(tmp_path, *flags, trust=trusting) as server:
        assert server.url.startswith("https://")
        with httpx.Client(verify=trusting, base_url=server.url, timeout=60) as client:
            body = {"model": "any", "prompt": "Once", "max_tokens": 2, "temperature": 0}
            model = client.get("/v1/models").json()["data"][0]["id"]
            answer = client.post("/v1/completions", json=body | {"model": model})
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] == 2
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url.replace('https', 'http')}/health")


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lite_llama.cli", "serve", "--ssl-certfile", str(tmp_path / "c")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "lite-llama: TLS needs both ssl_certfile and ssl_keyfile; give both or neither"
    ]


def test_a_certificate_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    flags = ["--ssl-certfile", str(tmp_path / "c"), "--ssl-keyfile", str(tmp_path / "k")]
    done = subprocess.run(
        [sys.executable, "-m", "lite_llama.cli", "serve", "--port", "0", "--device", "cpu", *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "c") in done.stderr


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, _ = _certificate(tmp_path)
    _, key = _certificate(tmp_path / "other")
    with pytest.raises(ConfigError, match="no certificate and key"):
        ServeConfig(ssl_certfile=str(certificate), ssl_keyfile=str(key))
