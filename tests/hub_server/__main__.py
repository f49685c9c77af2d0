"""`python -m tests.hub_server FOLDER` runs the server by hand and prints the variables for a client."""

import sys
import threading
from pathlib import Path

from . import HubServer

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with HubServer(folder, port=8787) as server:
        for name, value in server.environment("hf_alice", folder / "home").items():
            print(f"export {name}={value}")
        threading.Event().wait()
