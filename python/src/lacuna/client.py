"""What `lacuna unet` is asked, over HTTP on loopback. Neither torch nor numpy is needed: messages are safetensors' bytes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from .errors import LacunaError, NotServed, of_answer

#: The version of what is said. The server says its own.
PROTOCOL = 1

#: The entry of safetensors' metadata that holds what is said beside the tensors, as JSON.
HEADER = "lacuna"

# A U-Net call takes as long as it takes: minutes, on a slow machine.
_TIMEOUT = httpx.Timeout(None, connect=5.0)
# What is closed behind a call that nobody waits for is closed without them.
_CLOSING = httpx.Timeout(10.0)


@dataclass(frozen=True)
class Facts:
    """What the server says of itself."""

    #: Digest of the U-Net's weights.
    model: str
    #: The server's version.
    version: str
    #: `unet/config.json`, with the keys that pipelines read.
    config: dict[str, Any]
    #: The largest latents: batch, rows, columns.
    most: tuple[int, int, int]


@dataclass(frozen=True)
class Call:
    """A U-Net call that was made."""

    #: Seconds that the server took for it, workers and connection included.
    seconds: float
    #: Bytes sent to workers, and received from them, since the picture was opened.
    bytes_up: int
    bytes_down: int
    #: What became of workers that were lost.
    told: list[str] = field(default_factory=list)


def usual_door() -> Path:
    """The file in which `lacuna unet` says where it serves, if `--door` does not say another one."""
    said = os.environ.get("LACUNA_DOOR")
    if said:
        return Path(said)
    running = os.environ.get("XDG_RUNTIME_DIR")
    return Path(running, "lacuna", "unet.json") if running else Path.home() / ".lacuna" / "unet.json"


def read_door(path: Path) -> tuple[str, str]:
    """The address and the token in a file that `lacuna unet` wrote."""
    try:
        told = json.loads(path.read_bytes())
        url, token = told["url"], told["token"]
    except FileNotFoundError:
        hint = f"no `lacuna unet` serves: there is no {path}; start one, or name the file of its --door"
        raise NotServed(hint, "not_served") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotServed(f"{path} is no file that `lacuna unet` wrote: {error}", "not_served") from None
    # The token is for this machine alone.
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise NotServed(f"{path} names {url}, which is not on this machine", "not_served")
    return url, token


class Client:
    """A connection to `lacuna unet`. It may be used by one thread at a time."""

    def __init__(self, door: str | os.PathLike[str] | None = None) -> None:
        """Reads where to connect in the file `door`, by default the usual one.

        Raises NotServed where nobody serves, Forbidden where the token is another one.
        """
        self.door = Path(door) if door is not None else usual_door()
        url, token = read_door(self.door)
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            # Proxies are for other machines.
            trust_env=False,
        )
        said = self._ask("GET", "/v1/unet")
        try:
            if said["protocol"] != PROTOCOL:
                hint = f"the server speaks protocol {said['protocol']}, this package {PROTOCOL}; upgrade the older one"
                raise LacunaError(hint, "protocol")
            most = said["most"]
            self.facts = Facts(
                model=said["model"],
                version=said["version"],
                config=said["config"],
                most=(most["batch"], most["rows"], most["columns"]),
            )
        except (KeyError, TypeError) as error:
            raise LacunaError(f"the server answers nonsense: {error}", "answer") from None

    def open(self, message: bytes) -> Picture:
        """Opens a picture. The message has the header `{"latents": [batch, rows, columns]}` and what the U-Net is told of it:
        `encoder_hidden_states`, and what the model asks for beside.

        Raises PolicyRefused, WorkerLost, Refused.
        """
        said = self._ask("POST", "/v1/pictures", message)
        return Picture(self, said["id"], list(said["seen"]))

    def report(self) -> dict[str, Any]:
        """What was done, and who saw what, of all pictures that have ended."""
        return self._ask("GET", "/v1/report")

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        return json.loads(self._send(method, path, body))

    def _send(self, method: str, path: str, body: bytes | None = None, timeout: httpx.Timeout = _TIMEOUT) -> bytes:
        if self._http.is_closed:
            raise NotServed("this connection was closed; make another", "closed")
        try:
            answer = self._http.request(method, path, content=body, timeout=timeout)
        except httpx.HTTPError as error:
            hint = f"`lacuna unet` does not answer at {self._http.base_url}: {error}; was it ended?"
            raise NotServed(hint, "not_served") from error
        if answer.is_success:
            return answer.content
        try:
            said = answer.json()
        except ValueError:
            said = None
        raise of_answer(answer.status_code, said)


class Picture:
    """An open picture: a session on each worker."""

    def __init__(self, client: Client, id: str, seen: list[str]) -> None:
        self._client = client
        self.id = id
        #: What each provider will see of it, in lines; nothing where nobody else computes.
        self.seen = seen

    def call(self, message: bytes) -> tuple[bytes, Call]:
        """A U-Net call. The message has the header `{"timestep": number}` and the tensor `sample`; so has the answer, of which
        the header is read.

        Raises PolicyRefused, WorkerLost, Refused; LacunaError of the code "gone" where the picture has ended.
        """
        answer = self._client._send("POST", f"/v1/pictures/{self.id}/calls", message)
        return answer, read_call(answer)

    def close(self) -> None:
        """Closes it, with its sessions on the workers. One that has ended is closed."""
        self._client._send("DELETE", f"/v1/pictures/{self.id}", timeout=_CLOSING)


def read_call(answer: bytes) -> Call:
    """What is said beside the tensors of an answer."""
    # The library gives no metadata of bytes.
    length = int.from_bytes(answer[:8], "little")
    try:
        said = json.loads(json.loads(answer[8 : 8 + length])["__metadata__"][HEADER])
        return Call(said["seconds"], said["bytes_up"], said["bytes_down"], list(said["told"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LacunaError(f"the server answers nonsense: {error}", "answer") from None
