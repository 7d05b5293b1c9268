#!/usr/bin/env python3
"""OpenAI's official clients against `plimsoll serve`, on the demo model and on small OPT, Gemma 3 and GGUF checkpoints.

    clients/compat.py [--write docs/compatibility.md] [--only python | javascript] [--models demo,OPT]

Installs the clients at the versions of requirements.txt and js/package.json into FOLDER (clients/.env, or what
PLIMSOLL_CLIENTS names), and runs every check of both suites on every model. Exit status 1 where one fails. Needs
Python with venv, and node with npm for JavaScript; PLIMSOLL names another binary than target/release/plimsoll.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
BINARY = os.environ.get("PLIMSOLL", str(HERE.parent / "target/release/plimsoll"))
KEY = "sk-compat"


def run(*command, **more):
    return subprocess.run([str(c) for c in command], check=True, **more)


def installed(folder, javascript):
    """The Python that has the client, and where the JavaScript suite lies with its own."""
    python = folder / "venv/bin/python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", HERE / "requirements.txt")
    js = folder / "js"
    if javascript:
        js.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json", "suite.mjs"):
            shutil.copy(HERE / "js" / name, js / name)
        run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=js)
    return python, js


class Server:
    def __init__(self, model):
        # Two may wait: the clients have something to try again.
        flags = ("--max-num-seqs", 4, "--max-num-queued-reqs", 2, "--api-key", KEY, "--max-model-len", 1024)
        command = [str(c) for c in (BINARY, "serve", model, "--port", 0, "--served-model-name", "a-model", *flags)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"curl (http://[\d.:]+)/", line):
                self.url = f"{found[1]}/v1"
                return
        raise RuntimeError(said)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate()


def page(results, version):
    """The table, in Markdown."""
    models = list(next(iter(results.values())))
    lines = [
        "# Clients",
        "",
        f"`clients/compat.py --write docs/compatibility.md` ran these with plimsoll {version}. Each cell says on how many of the",
        f"models ({', '.join(models)}) every check of that name passed; the checks are in [clients](../clients).",
        "",
    ]
    names = list(next(iter(next(iter(results.values())).values())))
    lines += [f"| check | {' | '.join(results)} |", f"| --- |{' --- |' * len(results)}"]
    for name in names:
        cells = []
        for of_model in results.values():
            passed = [m for m in models if of_model[m].get(name, "not run") is None]
            cells.append("all" if len(passed) == len(models) else ", ".join(passed) or "none")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", choices=["python", "javascript"])
    parser.add_argument("--models", type=lambda s: s.split(","))
    a = parser.parse_args()
    folder = Path(os.environ.get("PLIMSOLL_CLIENTS", HERE / ".env"))
    folder.mkdir(parents=True, exist_ok=True)
    python, js = installed(folder, a.only != "python")
    results, failed = {}, 0
    with tempfile.TemporaryDirectory(prefix="plimsoll-compat-") as made:
        code = f"import sys, json; sys.path.insert(0, {str(HERE)!r}); import checkpoints, pathlib; print(json.dumps(checkpoints.all_of_them(pathlib.Path({made!r}))))"
        models = json.loads(run(python, "-c", code, capture_output=True, text=True).stdout.splitlines()[-1])
        for name, model in models.items():
            if a.models and name not in a.models:
                continue
            suites = {"python": [python, HERE / "suite.py"], "javascript": ["node", js / "suite.mjs"]}
            for language, command in suites.items():
                if a.only not in (None, language):
                    continue
                with Server(model) as server:
                    out = run(*command, server.url, KEY, capture_output=True, text=True).stdout
                told = json.loads(out)
                results.setdefault(told["client"], {})[name] = told["checks"]
                wrong = {k: v for k, v in told["checks"].items() if v}
                failed += len(wrong)
                print(f"{told['client']}, {name}: {len(told['checks']) - len(wrong)} of {len(told['checks'])} pass", flush=True)
                for check, why in wrong.items():
                    print(f"  {check}: {why.strip()}", flush=True)
    if a.write:
        version = run(BINARY, "--version", capture_output=True, text=True).stdout.split()[-1]
        a.write.write_text(page(results, version))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
