"""What goes wrong, each kind by its own name. `code` is a word for programs that stays what it is; the text is for people."""

from __future__ import annotations


class LacunaError(Exception):
    """Anything that keeps the U-Net from being computed."""

    #: The word of the server, or of this package.
    code: str
    #: The address of the worker whose doing it is, where one is to blame.
    worker: str | None

    def __init__(self, message: str, code: str, worker: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.worker = worker


class NotServed(LacunaError):
    """No `lacuna unet` answers: it was not started, or it has ended, or ends."""


class Forbidden(LacunaError):
    """The server does not let this program in: another token, or another host."""


class PolicyRefused(LacunaError):
    """The policy forbids what was asked for. Nothing was sent that it forbids."""


class WorkerLost(LacunaError):
    """A worker is lost or of no use, and the picture cannot go on without it."""


class Refused(LacunaError, ValueError):
    """What was asked for does not fit the model, or is more than the server takes."""


class NotSupported(LacunaError, NotImplementedError):
    """A feature of diffusers that a split U-Net does not have."""


class LacunaWarning(UserWarning):
    """A worker was lost, and the picture went on; says how."""


_KINDS: dict[str, type[LacunaError]] = {
    "token": Forbidden,
    "foreign": Forbidden,
    "policy": PolicyRefused,
    "worker": WorkerLost,
    "worker_wrong": WorkerLost,
    "stopping": NotServed,
    "too_large": Refused,
    "too_long": Refused,
    "invalid": Refused,
}


def of_answer(status: int, answer: object) -> LacunaError:
    """The error that a server's refusal is."""
    if not isinstance(answer, dict):
        answer = {}
    code = answer.get("code")
    if not isinstance(code, str):
        return LacunaError(f"the server answers with status {status}; is it `lacuna unet`?", "answer")
    worker = answer.get("worker")
    return _KINDS.get(code, LacunaError)(str(answer.get("error")), code, worker if isinstance(worker, str) else None)
