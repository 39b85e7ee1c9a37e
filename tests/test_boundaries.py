"""The rules of the layout: what may be imported where, checked by taking things away."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("encode_pipeline", "train", "eval")

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not here")
sys.meta_path.insert(0, Blocker())
"""


def run_without(blocked: set[str], code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a fresh interpreter in which some packages do not exist."""
    script = BLOCKER.format(blocked=blocked) + code
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )


def modules(package: str, leave_out: str = "never") -> list[str]:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / package).rglob("*.py"))]
    return [name.removesuffix(".__init__") for name in names if leave_out not in name]


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_everything_but_on_ray_imports_without_ray() -> None:
    names = [name for package in PACKAGES for name in modules(package, leave_out="on_ray")]
    done = run_without({"ray"}, f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_a_shard_encodes_without_ray(world: Path, small_vae: Path, tmp_path: Path) -> None:
    code = "from encode_pipeline.__main__ import VERBS, main; sys.exit(main('encode_pipeline', VERBS, sys.argv[1:]))"
    words = ["run", f"source={world / 'train' / '00000.tar'}", f"store={tmp_path / 's'}", f"vae={small_vae}"]
    done = run_without({"ray"}, code, *words, "image_size=64", "views=1")
    assert done.returncode == 0, done.stderr
    assert "16 encoded" in done.stdout
    refused = run_without({"ray"}, code, *words, "image_size=64", "views=2", "engine=ray")
    assert refused.returncode == 2 and "install latent-clip-pipeline[ray]" in refused.stderr


def test_train_imports_without_ray_diffusers_and_albumentations() -> None:
    code = f"import importlib\nfor name in {modules('train')!r}: importlib.import_module(name)"
    done = run_without({"ray", "diffusers", "albumentations", "cv2"}, code)
    assert done.returncode == 0, done.stderr


def test_the_contract_needs_neither_torch_nor_any_engine() -> None:
    code = f"import importlib\nfor name in {modules('encode_pipeline/latents')!r}: importlib.import_module(name)"
    done = run_without({"torch", "ray", "diffusers", "PIL", "cv2", "albumentations", "open_clip"}, code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = run_without(
        set(), "import encode_pipeline, train, eval\nassert not {'torch', 'pyarrow', 'numpy'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "allowed_in"),
    [
        ("ray", {"encode_pipeline/on_ray/", "cluster/"}),
        (
            "diffusers",
            {
                "encode_pipeline/vae.py",
                "eval/generator.py",
                "eval/safe_diffusion.py",
                "demo/train_vae.py",
                "demo/measure_vae.py",
                "demo/train_generator.py",
            },
        ),
    ],
)
def test_engines_and_models_are_imported_in_their_rooms_only(package: str, allowed_in: set[str]) -> None:
    for folder in (*PACKAGES, "demo", "cluster"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if any(module.split(".")[0] == package for module in imports(path)):
                assert any(name.startswith(room) for room in allowed_in), f"{name} imports {package}"


def test_train_knows_the_contract_and_nothing_else_of_the_encoder() -> None:
    for path in (ROOT / "train").rglob("*.py"):
        ours = {module for module in imports(path) if module.split(".")[0] in ("encode_pipeline", "eval", "demo")}
        assert all(module.startswith("encode_pipeline.latents") for module in ours), f"{path}: {ours}"


def test_the_contract_imports_what_it_may() -> None:
    allowed = {"numpy", "pyarrow", "fsspec", "pydantic", "yaml", *sys.stdlib_module_names}
    for path in (ROOT / "encode_pipeline" / "latents").rglob("*.py"):
        for module in imports(path):
            is_own = module.startswith("encode_pipeline.latents")
            assert is_own or module.split(".")[0] in allowed, f"{path.name} imports {module}"


def test_no_rooms_without_a_name() -> None:
    nameless = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not [
        path
        for folder in (*PACKAGES, "demo", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.name in nameless
    ]
