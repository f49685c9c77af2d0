"""Jobs: what was submitted, and in which stage each is. The tests run the commands themselves.

Secrets are kept apart from the rest, as on the live Hub, and never answered.
"""

import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import JobHardware

from .state import Account, now
from .wire import Refusal

_LABEL = re.compile(r"[a-zA-Z0-9._-]*")
_KEYS = {"command", "arguments", "environment", "flavor", "dockerImage", "spaceId", "secrets", "timeoutSeconds"}
_KEYS |= {"labels", "volumes", "attempts", "expose", "ssh", "network", "resourceGroupId"}


@dataclass
class Job:
    """A submitted job.

    Attributes:
        id: Its id.
        owner: The account or organization that it belongs to.
        specification: The body of the request, without secrets.
        secrets: The secrets.
        created: When it was submitted.
        stage: SCHEDULING, RUNNING, COMPLETED, ERROR or CANCELED; tests change it.
        log: What it has printed; tests set it.
    """

    id: str
    owner: str
    specification: dict[str, Any]
    secrets: dict[str, str]
    created: str
    stage: str = "SCHEDULING"
    log: Path | None = None

    def described(self) -> dict[str, Any]:
        """What the Hub answers about it."""
        return self.specification | {
            "id": self.id,
            "createdAt": self.created,
            "owner": {"id": self.owner, "name": self.owner, "type": "user"},
            "status": {"stage": self.stage, "message": None},
        }


class Jobs:
    """All jobs, the newest first."""

    def __init__(self) -> None:
        self.submitted: list[Job] = []

    def submit(self, account: Account, owner: str, body: dict[str, Any]) -> Job:
        """A new job; 403 without permission, 400 for a specification that the Hub would not run."""
        if not account.may_write(f"{owner}/job"):
            raise Refusal(403, f"You don't have the rights to run jobs under {owner}.")
        if unknown := body.keys() - _KEYS:
            raise Refusal(400, f"Unknown keys: {sorted(unknown)}")
        if body["flavor"] not in list(JobHardware):
            raise Refusal(400, f"Invalid flavor: {body['flavor']}")
        if ("dockerImage" in body) == ("spaceId" in body) or not all(isinstance(w, str) for w in body["command"]):
            raise Refusal(400, "A job needs one image and a command.")
        if not all(_LABEL.fullmatch(value) for value in body.get("labels", {}).values()):
            raise Refusal(400, "Invalid label")
        specification = {key: value for key, value in body.items() if key != "secrets"}
        job = Job(uuid.uuid4().hex[:24], owner, specification, body.get("secrets", {}), now())
        self.submitted.insert(0, job)
        return job

    def find(self, owner: str, labels: list[str], stages: list[str]) -> list[Job]:
        """The jobs of an owner that have all labels (`key=value`) and one of the stages, if any are given."""
        return [
            job
            for job in self.submitted
            if job.owner == owner
            and {tuple(label.split("=", 1)) for label in labels} <= job.specification.get("labels", {}).items()
            and (not stages or job.stage in stages)
        ]
