"""Holds `lamella serve` against the published schema of the Open Inference Protocol, by schemathesis.

    make .bench/schemathesis/installed && python benchmarks/serving/schema.py [--examples 200]

Requests are drawn from the schema, right and wrong ones, and from those of `schema_hooks.py`, which come nearer to what
the model takes. No answer may be an error of the server, and each must be what the schema says.

`open_inference_rest.yaml` is that of github.com/kserve/open-inference-protocol, at d49cc23 (Apache License 2.0).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import models
import race

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="of each operation, at most (%(default)s)")
    parser.add_argument("--python", default=str(race.ROOT / ".bench/schemathesis/bin/python"), help="has schemathesis")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # In OpenAPI a parameter is written {NAME}. The published file writes ${NAME}, which asks for a dollar sign.
        text = (race.HERE / "open_inference_rest.yaml").read_text(encoding="utf-8").replace("${", "{")
        (folder / "schema.yaml").write_text(text, encoding="utf-8")
        server = race.Server(race.contestants()[0], models.export("digits", folder / "models"), folder, race.Settings())
        try:
            options = ["--url", f"http://127.0.0.1:{server.port}", "--checks", CHECKS, "--seed", "1"]
            options += ["--max-examples", str(given.examples), "--phases", "examples,coverage,fuzzing"]
            ended = subprocess.run(
                [
                    given.python,
                    "-m",
                    "schemathesis.cli",
                    "run",
                    folder / "schema.yaml",
                    *options,
                    "--continue-on-failure",
                ],
                env=os.environ | {"PYTHONPATH": str(race.HERE), "SCHEMATHESIS_HOOKS": "schema_hooks"},
                cwd=folder,
                timeout=600,
            )
            seen = server.get("/v2/models/digits/stats")["model_stats"][0]["inference_stats"]
        finally:
            server.close()
    answered, refused = (seen[how]["count"] for how in ("success", "fail"))
    print(f"of the requests to the model {answered:,} were answered, {refused:,} refused")
    return ended.returncode or int(not answered or not refused)


if __name__ == "__main__":
    sys.exit(main())
