"""One command shape for every package: `python -m PACKAGE VERB [ARGUMENT] [key=value ...]`.

Settings are pydantic models that validate at birth. They come from a YAML file, then from the command
line, and a key that no model knows is refused with the nearest one that exists.
"""

from __future__ import annotations

import difflib
import json
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

REMOTE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests")
"""Whose exceptions mean that a server, a login or an address is wrong, not that the program is."""


CLEAR = "\x1b[H\x1b[2J"
"""What empties a terminal."""


class RequestError(Exception):
    """What the user asked for cannot be done; the message is one line that says why."""


class CheckFailed(Exception):
    """The request was fine, but what it found was not; the message is one line that says what."""


class Settings(BaseModel):
    """Base of every configuration: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=())


@dataclass(frozen=True)
class Verb:
    """A word of a package's command line and the function behind it."""

    settings: type[Settings]
    run: Callable[[Any], Mapping[str, Any]]
    """Gets the settings, returns what `--json` prints; `ok: False` in it means exit status 1."""
    help: str
    argument: str | None = None
    """The key that a bare argument sets; where it holds a list, all bare words together."""
    show: Callable[[Mapping[str, Any]], str] | None = None
    """Turns the result into the text a person reads; without it the result is printed key by key."""
    watch: Callable[[Any], Iterator[Mapping[str, Any]]] | None = None
    """With `watch=true`, results that come one after the other, on a terminal each over the one before."""


@dataclass(frozen=True)
class Request:
    verb: str
    config: Path | None
    overrides: dict[str, Any]
    as_json: bool
    print_config: bool


class Terminated(KeyboardInterrupt):
    """The system wants this program to end, as before a machine is taken away."""


def main(package: str, verbs: Mapping[str, Verb], argv: Sequence[str], default: str | None = None) -> int:
    """Exit status of one command: 0 all done, 1 done with failures or a failed check, 2 a wrong request."""
    if (not argv and default is None) or (argv and argv[0] in ("-h", "--help", "help")):
        print(usage(package, verbs))
        return 0 if argv else 2
    as_json = "--json" in argv
    before = signal.getsignal(signal.SIGTERM)
    try:
        with suppress(ValueError):  # not the main thread, which alone hears signals
            signal.signal(signal.SIGTERM, _terminate)
        request = parse(package, verbs, argv, default)
        verb = verbs[request.verb]
        if request.overrides.pop("help", None):
            print(describe(package, request.verb, verb))
            return 0
        settings = load_settings(verb, verbs.values(), request)
        if request.print_config:
            print(to_yaml(settings), end="")
            return 0
        watching = verb.watch if getattr(settings, "watch", False) else None
        result: Mapping[str, Any] = {}
        for result in watching(settings) if watching else [verb.run(settings)]:
            clear = CLEAR if watching and sys.stdout.isatty() and not as_json else ""
            try:
                print(clear + _text(verb, result, as_json), flush=True)
            except BrokenPipeError:  # `| head` has seen enough; what Python still has to say goes the same way
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 141
    except RequestError as error:
        return _fail(error, 2, as_json)
    except CheckFailed as error:
        return _fail(error, 1, as_json)
    except OSError as error:
        return _fail(one_line(error), 2, as_json)
    except Exception as error:
        if type(error).__module__.split(".")[0] not in REMOTE_LIBRARIES:
            raise
        return _fail(f"{type(error).__name__}: {' '.join(str(error).split())}", 2, as_json)
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 143 if isinstance(interrupt, Terminated) else 130
    finally:
        with suppress(ValueError, TypeError):
            signal.signal(signal.SIGTERM, before)
    return 0 if result.get("ok", True) else 1


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _text(verb: Verb, result: Mapping[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(result, default=str)
    return verb.show(result) if verb.show else "\n".join(f"{k}: {v}" for k, v in result.items())


def parse(package: str, verbs: Mapping[str, Verb], argv: Sequence[str], default: str | None) -> Request:
    """What the words of a command line ask for, before any value is checked."""
    words = list(argv)
    if words and words[0] in verbs:
        name = words.pop(0)
    elif default is not None and (not words or "=" in words[0] or words[0].startswith("-")):
        name = default
    else:
        raise RequestError(f"unknown verb {words[0]!r} for python -m {package}{nearest(words[0], verbs)}")
    verb = verbs[name]
    flags: dict[str, Any] = {"json": False, "print_config": False, "config": None}
    overrides: dict[str, Any] = {}
    bare: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("--json", "--print-config"):
            flags[word[2:].replace("-", "_")] = True
        elif word in ("-h", "--help"):
            overrides["help"] = True
        elif word.startswith("--"):
            key, sep, text = word[2:].partition("=")
            key = key.replace("-", "_")
            field = verb.settings.model_fields.get(key)
            if sep:
                value = text
            elif key != "config" and field is not None and field.annotation is bool:
                value = "true"
            elif words:
                value = words.pop(0)
            elif field is None and key != "config":
                raise RequestError(f"unknown key {key!r}{nearest(key, verb.settings.model_fields)}")
            else:
                raise RequestError(f"{word} needs a value")
            _set(flags if key == "config" else overrides, key, value, _is_text(verb, key))
        elif "=" in word and word.partition("=")[0].isidentifier():
            key, _, value = word.partition("=")
            _set(overrides, key, value, _is_text(verb, key))
        elif verb.argument is not None and (not bare or _is_list(verb, verb.argument)):
            bare.append(word)
        else:
            raise RequestError(f"{word!r} is not key=value, and {package} {name} takes no such argument")
    if verb.argument is not None and bare:
        if overrides.get(verb.argument) is not None:
            raise RequestError(f"{verb.argument} is given twice")
        overrides[verb.argument] = bare if _is_list(verb, verb.argument) else bare[0]
    config = Path(str(flags["config"])) if flags["config"] is not None else None
    return Request(name, config, overrides, flags["json"], flags["print_config"])


def load_settings(verb: Verb, all_verbs: typing.Iterable[Verb], request: Request) -> Settings:
    """The verb's settings: defaults, then the file, then the command line.

    A file may hold keys of the package's other verbs, so that one file serves a whole pipeline.
    """
    known = {key for other in all_verbs for key in other.settings.model_fields}
    own = verb.settings.model_fields
    values: dict[str, Any] = {}
    if request.config is not None:
        for key, value in read_yaml(request.config).items():
            if key not in known:
                raise RequestError(f"{request.config}: unknown key {key!r}{nearest(key, known)}")
            if key in own:
                values[key] = value
    for key, value in request.overrides.items():
        if key not in own:
            raise RequestError(f"unknown key {key!r}{nearest(key, own)}")
        values[key] = value
    return build(verb.settings, values)


S = typing.TypeVar("S", bound=Settings)


def build(settings: type[S], values: Mapping[str, Any]) -> S:
    """Settings from plain values; what is wrong with them becomes one line."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or settings.__name__
            if item["type"] == "missing":
                problems.append(f"{where} is required")
            elif item["type"] == "extra_forbidden":
                problems.append(f"unknown key {where!r}{nearest(where, settings.model_fields)}")
            else:
                about = f"{where}={item['input']!r}: " if item["loc"] else ""  # else it is about several keys
                problems.append(about + item["msg"].removeprefix("Value error, "))
        raise RequestError("; ".join(problems)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path}: no such config file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise RequestError(f"{path}: expected keys and values, found a {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


def to_yaml(settings: Settings) -> str:
    """The resolved settings as the YAML that would give them again."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def usage(package: str, verbs: Mapping[str, Verb]) -> str:
    """The page that `--help` prints."""
    width = max(map(len, verbs))
    lines = [f"usage: python -m {package} VERB [ARGUMENT] [--config FILE.yaml] [key=value ...] [--json]", ""]
    lines += [f"  {name:<{width}}  {verb.help}" for name, verb in verbs.items()]
    lines += ["", f"`python -m {package} VERB --help` lists the verb's keys; `--print-config` shows their values."]
    return "\n".join(lines)


def describe(package: str, name: str, verb: Verb) -> str:
    """The page that `VERB --help` prints: each key, its default and what it is for."""
    argument = ""
    if verb.argument:
        argument = f" [{verb.argument.upper()}{' ...' if _is_list(verb, verb.argument) else ''}]"
    lines = [f"python -m {package} {name}{argument} [key=value ...]: {verb.help}", ""]
    for key, field in sorted(verb.settings.model_fields.items(), key=lambda item: not item[1].is_required()):
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)}"
        lines.append(f"  {key} ({default})" + (f": {field.description}" if field.description else ""))
    return "\n".join(lines)


def _is_list(verb: Verb, key: str) -> bool:
    """Whether a key takes several values."""
    annotation = verb.settings.model_fields[key].annotation
    return any(typing.get_origin(kind) in (list, tuple) for kind in (annotation, *typing.get_args(annotation)))


def _is_text(verb: Verb, key: str) -> bool:
    """Whether a key takes text, which is then taken as typed: 0123 is a name here and no octal number."""
    field = verb.settings.model_fields.get(key)
    kinds = set() if field is None else set(typing.get_args(field.annotation) or (field.annotation,))
    if field is not None and _is_list(verb, key) and kinds == {str}:
        return False
    return key == "config" or kinds in ({str}, {Path}) or kinds in ({str, type(None)}, {Path, type(None)})


def _set(into: dict[str, Any], key: str, text: str, is_text: bool) -> None:
    if into.get(key) is not None:
        raise RequestError(f"{key} is given twice")
    if is_text and text.lower() not in ("null", "none"):
        into[key] = text
        return
    try:
        into[key] = yaml.safe_load(text)
    except yaml.YAMLError:
        into[key] = text


def nearest(word: str, known: typing.Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(names)}"


def one_line(error: OSError) -> str:
    """The error as one line that begins with the file it is about."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(error: Exception | str, status: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"ok": False, "error": str(error)}))
    print(f"error: {error}", file=sys.stderr)
    return status
