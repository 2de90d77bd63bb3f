"""The package without torch: what it says to a server, and what becomes of the answers."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import lacuna
from lacuna.client import read_call, usual_door
from lacuna.errors import of_answer

FACTS = {
    "protocol": 1,
    "version": "0.1.0",
    "model": "abc",
    "config": {"in_channels": 4},
    "most": {"batch": 4, "rows": 64, "columns": 32},
}


def message(header: dict) -> bytes:
    """A message of no tensor."""
    head = json.dumps({"__metadata__": {"lacuna": json.dumps(header)}}).encode()
    return len(head).to_bytes(8, "little") + head


class Server:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self, answers: dict[tuple[str, str], tuple[int, bytes]]) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                asked.append((self.command, self.path, dict(self.headers), body))
                status, answer = answers[self.command, self.path]
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.folder = tempfile.TemporaryDirectory()
        self.door = Path(self.folder.name, "unet.json")
        url = f"http://127.0.0.1:{self.http.server_port}"
        self.door.write_text(json.dumps({"url": url, "token": "secret"}))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.folder.cleanup()


class ClientTest(unittest.TestCase):
    def test_what_is_asked_has_the_token_and_no_origin(self) -> None:
        said = {"seconds": 0.5, "bytes_up": 3, "bytes_down": 4, "told": ["went on"]}
        answers = {
            ("GET", "/v1/unet"): (200, json.dumps(FACTS).encode()),
            ("POST", "/v1/pictures"): (201, b'{"id": "p1", "seen": ["half"]}'),
            ("POST", "/v1/pictures/p1/calls"): (200, message(said)),
            ("DELETE", "/v1/pictures/p1"): (204, b""),
        }
        with Server(answers) as server:
            client = lacuna.Client(server.door)
            self.assertEqual(client.facts.most, (4, 64, 32))
            picture = client.open(b"opening")
            self.assertEqual(picture.seen, ["half"])
            answer, call = picture.call(b"call")
            self.assertEqual(call, lacuna.Call(0.5, 3, 4, ["went on"]))
            self.assertEqual(answer, message(said))
            picture.close()
            client.close()
        self.assertEqual([ask[:2] for ask in server.asked], list(answers))
        self.assertEqual([ask[3] for ask in server.asked], [b"", b"opening", b"call", b""])
        for _, _, headers, _ in server.asked:
            headers = {name.lower(): value for name, value in headers.items()}
            self.assertEqual(headers["authorization"], "Bearer secret")
            self.assertNotIn("origin", headers)

    def test_refusals_are_exceptions_of_their_own(self) -> None:
        for code, kind in (
            ("policy", lacuna.PolicyRefused),
            ("worker", lacuna.WorkerLost),
            ("worker_wrong", lacuna.WorkerLost),
            ("token", lacuna.Forbidden),
            ("too_large", lacuna.Refused),
            ("stopping", lacuna.NotServed),
            ("new in a later version", lacuna.LacunaError),
        ):
            error = of_answer(400, {"code": code, "error": "why", "worker": "http://w/"})
            self.assertIs(type(error), kind)
            self.assertEqual((str(error), error.code, error.worker), ("why", code, "http://w/"))
        self.assertIn("status 502", str(of_answer(502, None)))
        refused = json.dumps({"code": "policy", "error": "its rule max_rows", "worker": None}).encode()
        answers = {("GET", "/v1/unet"): (200, json.dumps(FACTS).encode()), ("POST", "/v1/pictures"): (403, refused)}
        with Server(answers) as server:
            client = lacuna.Client(server.door)
            with self.assertRaisesRegex(lacuna.PolicyRefused, "max_rows"):
                client.open(b"")
            client.close()

    def test_a_closed_connection_says_so(self) -> None:
        with Server({("GET", "/v1/unet"): (200, json.dumps(FACTS).encode())}) as server:
            client = lacuna.Client(server.door)
            client.close()
            with self.assertRaises(lacuna.NotServed) as caught:
                client.report()
            self.assertEqual(caught.exception.code, "closed")

    def test_nobody_serves(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            door = Path(folder, "unet.json")
            with self.assertRaisesRegex(lacuna.NotServed, "start one"):
                lacuna.Client(door)
            for wrong in ("", "[]", "{}", '{"url": "http://evil.example", "token": "x"}'):
                door.write_text(wrong)
                with self.assertRaises(lacuna.NotServed):
                    lacuna.Client(door)
        with Server({}) as server:
            door = server.door.read_text()
        with tempfile.TemporaryDirectory() as folder:
            left = Path(folder, "unet.json")
            left.write_text(door)
            with self.assertRaisesRegex(lacuna.NotServed, "was it ended"):
                lacuna.Client(left)

    def test_nonsense_is_an_error(self) -> None:
        for answer in (b"", b"\xff" * 20, message({}), message({"seconds": 1})):
            with self.assertRaisesRegex(lacuna.LacunaError, "nonsense"):
                read_call(answer)
        for facts in ({}, {**FACTS, "most": None}):
            with Server({("GET", "/v1/unet"): (200, json.dumps(facts).encode())}) as server:
                with self.assertRaisesRegex(lacuna.LacunaError, "nonsense"):
                    lacuna.Client(server.door)
        with Server({("GET", "/v1/unet"): (200, json.dumps({**FACTS, "protocol": 2}).encode())}) as server:
            with self.assertRaisesRegex(lacuna.LacunaError, "protocol 2"):
                lacuna.Client(server.door)

    def test_the_door_is_where_the_program_puts_it(self) -> None:
        before = dict(os.environ)
        try:
            os.environ["LACUNA_DOOR"] = "/somewhere/door.json"
            self.assertEqual(usual_door(), Path("/somewhere/door.json"))
            del os.environ["LACUNA_DOOR"]
            os.environ["XDG_RUNTIME_DIR"] = "/run/user/7"
            self.assertEqual(usual_door(), Path("/run/user/7/lacuna/unet.json"))
            del os.environ["XDG_RUNTIME_DIR"]
            self.assertEqual(usual_door(), Path.home() / ".lacuna" / "unet.json")
        finally:
            os.environ.clear()
            os.environ.update(before)

    def test_torch_is_not_imported_before_it_is_needed(self) -> None:
        code = "import lacuna, sys; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'numpy')))"
        self.assertEqual(subprocess.run([sys.executable, "-c", code]).returncode, 0)


if __name__ == "__main__":
    unittest.main()
