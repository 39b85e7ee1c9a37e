"""What a shell command asks for: Ray's own verbs, and files of the project that have to be there."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.check.documents import PLACEHOLDER, nearest
from cluster.spot_notice import read_words

ROOT = Path(__file__).resolve().parents[2]
"""The project's own files, as they will lie on the machines."""

IMAGE_HOME = "/opt/latent-clip-pipeline"
LAUNCHED_HOME = "~/latent-clip-pipeline"


@dataclass(frozen=True)
class Project:
    """Where a machine has the project's files, and what is made there and not copied."""

    homes: tuple[str, ...]
    brought: tuple[str, ...] = (".",)
    """What of the project is brought there."""
    made: frozenset[str] = frozenset({".venv", ".venv-download", "runs"})

    def lacks(self, path: str) -> str | None:
        """Why the machine would not have a file or folder of the project; None where it would."""
        if not (ROOT / path).exists():
            return f"the project has no {path}"
        if not any(Path(path).is_relative_to(part) for part in self.brought):
            return f"file_mounts do not bring {path}"
        return None

    def inside(self, word: str) -> str | None:
        """The path within the project that a word names."""
        word = re.sub(r"^(\$HOME|\$\{HOME\}|/home/[^/]+|/root)(?=/|$)", "~", word)
        for home in self.homes:
            home = re.sub(r"^(/home/[^/]+|/root)(?=/|$)", "~", home.rstrip("/"))
            if word.rstrip("/") == home or word.startswith(home + "/"):
                return word[len(home) :].strip("/")
        return None


def simple_commands(text: str) -> Iterator[list[str]]:
    """The single commands of a line of shell, as lists of words; ValueError where a quote does not close."""
    lexer = shlex.shlex(re.sub(r"\\\n", " ", text).replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    to_file = False
    for word in [*lexer, ";"]:
        if word and set(word) <= set("();<>|&"):
            to_file = bool(set(word) & set("<>"))
            if to_file and words and words[-1].isdigit():
                words.pop()
            elif words and not to_file:
                yield words
                words = []
        elif to_file:
            to_file = False
        else:
            if words and re.fullmatch(r"-[a-z]*c", words[-1]) and Path(words[0]).name in ("bash", "sh"):
                yield from simple_commands(word)
            words.append(word)


def ray_options(text: str, verb: str) -> Iterator[dict[str, str]]:
    """The options of each `ray VERB` in a command."""
    for words in simple_commands(text):
        for place, word in enumerate(words[:-1]):
            if Path(word).name == "ray" and words[place + 1] == verb:
                yield _options(words[place + 2 :])
                break


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    name = None
    for word in words:
        if word.startswith("-"):
            name, _, value = word.partition("=")
            options[name] = value
        elif name is not None:
            options[name] = word
            name = None
    return options


def command_faults(text: str, project: Project) -> Iterator[str]:
    """What a command asks for that neither Ray nor the project has."""
    where: str | None = None
    try:
        for words in simple_commands(text):
            if words[0] == "cd" and len(words) > 1:
                where = project.inside(words[1])
            yield from _missing(words, where, project)
        for options in ray_options(text, "start"):
            for name in options:
                if name not in _ray_start_options():
                    yield f"`ray start` has no {name}{nearest(name, _ray_start_options())}"
            if "--block" in options:
                yield "`ray start --block` never ends, and what comes after it never begins"
    except ValueError as error:
        yield f"not a shell command: {error}"


def _missing(words: list[str], where: str | None, project: Project) -> Iterator[str]:
    for place, word in enumerate(words):
        if place and words[place - 1] == "-m" and re.fullmatch(r"[A-Za-z_][\w.]*", word):
            yield from _missing_module(word, project)
            if word == "encode_pipeline":
                yield from _wrong_request(words[place + 1 :])
            if word == "cluster.spot_notice":
                yield from _refused_by_watcher(words[place + 1 :])
            continue
        inside = project.inside(word)
        if inside is None and where is not None and re.fullmatch(r"[\w./-]+\.(py|ya?ml|sh)", word):
            inside = f"{where}/{word}".strip("/") if not word.startswith("/") else None
        if inside and not PLACEHOLDER.search(inside) and not set("$*`'\"") & set(inside):
            first = inside.split("/")[0]
            if first not in project.made and (lack := project.lacks(inside)):
                yield lack
    if Path(words[0]).name == "make":
        at = project.inside(words[words.index("-C") + 1]) if "-C" in words[:-1] else where
        targets = set(words[1:]) - {word for i, word in enumerate(words) if words[i - 1] in ("-C", "-f", "-j")}
        for target in sorted(targets):
            if at == "" and re.fullmatch(r"[a-z0-9-]+", target) and not target.startswith("-"):
                known = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
                if target not in known:
                    yield f"the Makefile has no target {target}{nearest(target, known)}"


def _missing_module(name: str, project: Project) -> Iterator[str]:
    path = Path(*name.split("."))
    if (ROOT / path.parts[0] / "__init__.py").exists():
        found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / file).exists()]
        if not found:
            yield f"the project has no module {name}"
        elif lack := project.lacks(str(found[0])):
            yield lack


def _wrong_request(words: list[str]) -> Iterator[str]:
    """What `python -m encode_pipeline` would refuse of these words before it looks at a value."""
    from encode_pipeline.__main__ import VERBS
    from encode_pipeline.latents.command import RequestError, parse

    try:
        request = parse("encode_pipeline", VERBS, words, None)
    except (RequestError, IndexError) as error:
        yield str(error) or "encode_pipeline is given no verb"
        return
    known = VERBS[request.verb].settings.model_fields
    yield from (
        f"{request.verb} has no key {key!r}{nearest(key, known)}" for key in request.overrides if key not in known
    )


def _refused_by_watcher(words: list[str]) -> Iterator[str]:
    """What the watcher would say on a worker, where nobody hears it, and end."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        read_words(words)
        return
    yield said.getvalue().rstrip().rpartition("error: ")[2]


@functools.cache
def _ray_start_options() -> frozenset[str]:
    from ray.scripts.scripts import start

    return frozenset(name for option in start.params for name in (*option.opts, *option.secondary_opts)) | {"--help"}
