#!/usr/bin/env python3
"""SGLang's own argument parser, run on commands without a GPU and without what SGLang depends on.

    sglang_flags.py DIR < COMMANDS.json

DIR is a wheel of PyPI (`pip download sglang==VERSION --no-deps`), unzipped; standard input a JSON list of commands,
each a list of words after `python -m sglang.launch_server`. Every command is read by `ServerArgs.add_cli_args` of that
version; the first that it refuses ends this with its message and code 1. Otherwise `read` is printed, and on standard
error the modules of SGLang that could not be imported whole.

Packages that are not installed are stood in for by a module that has every name; modules of SGLang are its own, except
that one which stumbles over such a stand-in keeps what it had defined until then. `server_args.py` and `arg_groups`, where
flags, their types and their choices stand, have to import as they are: without it there is no answer. Needs Python 3.11
and, from 0.5.17 on, `msgspec`, whose structures these flags are written in.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import sys
import types


class Anything:
    """Has every attribute, takes every call, is a base class of nothing, and is false."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args, **kwargs):
        # As a decorator it leaves what it decorates.
        if len(args) == 1 and not kwargs and isinstance(args[0], (type, types.FunctionType)):
            return args[0]
        return Anything()

    def __mro_entries__(self, bases):
        return ()

    def __iter__(self):
        return iter(())

    def __bool__(self):
        return False

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False

    def __getitem__(self, key):
        return Anything()

    def __or__(self, other):
        return Anything()

    __ror__ = __or__

    def __lt__(self, other):
        return False

    __gt__ = __le__ = __ge__ = __lt__


def every_name(name):
    if name == "__version__":
        return "0.0.0"
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything()


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages that nobody else finds."""

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top == "sglang":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__getattr__ = every_name


# Where flags, their types and their choices stand.
WHOLE = ("sglang.srt.server_args", "sglang.srt.arg_groups")


class Own(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of SGLang, each as far as it can be imported."""

    def __init__(self):
        self.loaders = {}
        self.partly = {}

    def find_spec(self, name, path=None, target=None):
        if not name.startswith("sglang."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            self.loaders[name] = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        try:
            self.loaders[module.__name__].exec_module(module)
        except Exception as e:
            if module.__name__.startswith(WHOLE):
                raise
            self.partly[module.__name__] = f"{type(e).__name__}: {e}"
            module.__getattr__ = every_name


def main():
    tree = sys.argv[1]
    # The packages themselves without their __init__, which would start the engine's front end.
    for name in ("sglang", "sglang.srt"):
        package = types.ModuleType(name)
        package.__path__ = [f"{tree}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    own = Own()
    sys.meta_path.insert(0, own)
    sys.meta_path.append(Absent())
    from sglang.srt.server_args import ServerArgs

    for words in json.load(sys.stdin):
        parser = argparse.ArgumentParser(prog=" ".join(words), usage=argparse.SUPPRESS)
        ServerArgs.add_cli_args(parser)
        if parser.get_default("context_length") is not None:
            sys.exit("this parser has no `--context-length` that is unset by default: are its flags its own?")
        parser.parse_args(words)
    for name, why in own.partly.items():
        print(f"{name}: in part ({why})", file=sys.stderr)
    print("read")


main()
