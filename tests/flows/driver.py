"""A process that runs commands of the command line one after another, so that all of them share one Prefect server.

Reads {"arguments", "environment"} a line, answers {"code", "out", "err", "modules"} a line.
"""

import json
import os
import sys
import tempfile

answers = os.fdopen(os.dup(1), "w")
given = os.environ.copy()

from flows.cli.commands import main  # noqa: E402

for line in sys.stdin:
    request = json.loads(line)
    os.environ.update(request["environment"])
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        saved = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            code = main(request["arguments"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), saved, strict=True):
                os.dup2(before, number)
                os.close(before)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    for name in request["environment"]:
        os.environ.pop(name)
        if name in given:
            os.environ[name] = given[name]
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"code": code, "out": texts[0], "err": texts[1], "modules": modules}), file=answers, flush=True)
