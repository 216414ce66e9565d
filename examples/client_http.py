# client_http.py
"""Ask a served `digits` over HTTP, with nothing but Python: python3 client_http.py [HOST:PORT]."""

import json
import sys
from urllib.request import Request, urlopen

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "localhost:8000"


def ask(rows: list[list[int]]) -> tuple[list[str], dict[str, object]]:
    """The label of each row of 64 numbers, and which state says so."""
    x = {"name": "x", "datatype": "FP64", "shape": [len(rows), 64], "data": rows}
    with urlopen(Request(f"http://{ADDRESS}/v2/models/digits/infer", json.dumps({"inputs": [x]}).encode())) as reply:
        answer = json.load(reply)
    return [output["data"] for output in answer["outputs"] if output["name"] == "label"][0], answer["parameters"]


print(*ask([[0] * 64, list(range(64))]))
