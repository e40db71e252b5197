"""The borders between the parts, checked on the source itself."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "numpy",
    "pydantic",
    "albumentations",
    "PIL",
    "scipy",
    "cv2",
}
PLUGIN_FOLDERS = (
    "sources", "conditions", "generators", "labellers", "filters", "exporters", "launchers", "datasets", "students"
)  # fmt: skip


def _imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def _files(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def _belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("file", _files("decoders"), ids=lambda file: str(file.relative_to(ROOT)))
def test_decoders_never_import_datagen(file: Path):
    assert not [module for module in _imports(file) if _belongs(module, "datagen")]


def test_records_import_only_labels():
    ours = {m for m in _imports(ROOT / "datagen/records.py") if _belongs(m, "datagen") or _belongs(m, "decoders")}
    assert ours == {"decoders.labels"}


def test_labels_import_only_the_error():
    ours = {m for m in _imports(ROOT / "decoders/labels.py") if _belongs(m, "datagen") or _belongs(m, "decoders")}
    assert ours == {"decoders.errors"}


def test_only_the_pocket_folder_knows_the_pocket_model():
    """The embedded model is a folder like any other: who needs it names it in a plan."""
    allowed = {"cli.py", "doctor.py", "pocket_scenes.py"}
    guilty = [
        str(file.relative_to(ROOT))
        for file in _files("datagen")
        if "pocket" not in file.parent.parts and file.name not in allowed
        if any(_belongs(module, "datagen.pocket") for module in _imports(file))
    ]
    assert not guilty


def test_albumentations_is_used_in_one_file_only():
    users = [file for package in ("decoders", "datagen") for file in _files(package)]
    assert len([file for file in users if any(_belongs(module, "albumentations") for module in _imports(file))]) <= 1


@pytest.mark.parametrize(
    ("arguments", "typers_own"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["pocket", "--help"], {"pydantic"}),  # newer versions of typer convert the arguments of a verb with it
        (["generate", "--help"], {"pydantic"}),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], typers_own: set[str]):
    code = (
        "import sys\n"
        f"sys.argv = ['datagen', *{arguments!r}]\n"
        "from datagen.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('heavy:', *sorted({HEAVY - typers_own!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "heavy:"


def _plugins() -> list[tuple[str, str]]:
    return [
        (folder, file.stem)
        for folder in PLUGIN_FOLDERS
        for file in sorted((ROOT / "datagen" / folder).glob("*.py"))
        if file.stem not in ("__init__", "base") and not file.stem.startswith("_")
    ]


@pytest.mark.parametrize(("folder", "kind"), _plugins())
def test_a_plugin_file_defines_the_class_of_its_name(folder: str, kind: str):
    module = importlib.import_module(f"datagen.{folder}.{kind}")
    name = "".join(part.capitalize() for part in kind.split("_"))
    assert isinstance(getattr(module, name, None), type), f"datagen/{folder}/{kind}.py must define class {name}"
