"""The pages agree with the repository: links, Python and public names, which are documented and typed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch

from pamkd import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pamkd"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
API = ("pamkd", "pamkd.ops", "pamkd.reference", "pamkd.data", "pamkd.spaces", "pamkd.transfer", "pamkd.methods")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_parses_and_its_imports_exist(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pamkd"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module} has no {alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("pamkd"):
                        importlib.import_module(alias.name)


# What each command calls once it has read its options.
CALLED = {
    "search": "runs.search.search",
    "plan": "runs.plan.plan",
    "evaluate": "runs.evaluate.evaluate",
    "random": "runs.random_search.run",
    "lookup": "runs.lookup.lookup",
    "report": "report.report",
    "reproduce": "reproduce.reproduce",
    "sweep": "sweep.sweep",
    "export": "runs.export.export",
    "replay": "runs.replay.replay",
    "doctor": "doctor.doctor",
}


class Accepted(Exception):
    """A command's options were read."""


def commands_of(page):
    """Words after `pamkd` of every command in a block of code. What stands in capitals is the reader's choice."""
    text = page.read_text()
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, flags=re.S) + re.findall(r"(?:^    .*\n)+", text, flags=re.M)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"\bMETHOD\b", "mkd", re.sub(r"\bSEED\b", "0", line)), comments=True) if "pamkd " in line else []
        for i, word in enumerate(words[:-1]):
            if word == "pamkd" and words[i + 1] in CALLED:
                yield [word for word in words[i + 1 :] if word != "--resume"]  # which would read the run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_are_accepted(page, tmp_path, monkeypatch):
    def accept(*_):
        raise Accepted

    monkeypatch.chdir(tmp_path)
    for path in CALLED.values():
        module, name = path.rsplit(".", 1)
        monkeypatch.setattr(importlib.import_module(f"pamkd.{module}"), name, accept)
    found = list(commands_of(page))
    for words in found:
        with pytest.raises(Accepted):
            cli.main(words)
    assert found or page.name not in ("README.md", "search.md", "spaces.md", "evaluation.md", "results.md", "scaling.md")


def test_what_never_ran_on_a_gpu_is_one_table():
    """In the README and on the page about GPUs."""
    tables = [
        re.search(r"(^\| part \|.*run on a GPU \|\n(?:\|.*\n)+)", (ROOT / page).read_text(), flags=re.M)
        for page in ("README.md", "docs/gpu.md")
    ]
    assert tables[0][1] == tables[1][1] and tables[0][1].count("never |") >= 10


def test_the_readme_distills():
    """The block of the README about the distillation alone."""
    embedding = torch.randn(10, 4)
    groups = torch.tensor([[0, 1, 2]])
    names = {
        "task_loss": torch.zeros(()),
        "teacher_embedding": embedding,
        "student_embedding": embedding + 1,
        "groups_x": groups,
        "groups_y": groups + 3,
    }
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    block = next(block for block in blocks if "grs_loss" in block)
    exec(compile(block, "README.md", "exec"), names)
    assert names["loss"].dim() == 0 and names["loss"].isfinite()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_say_what_they_hold(path):
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree) or path.name == "version.py", path


@pytest.mark.parametrize("module", API)
def test_public_names_are_documented_and_typed(module):
    found = importlib.import_module(module)
    for name in getattr(found, "__all__", [name for name in vars(found) if not name.startswith("_")]):
        value = getattr(found, name)
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("pamkd"):
            assert inspect.getdoc(value), f"{module}.{name} has no docstring"
        if inspect.isfunction(value) and value.__module__.startswith("pamkd"):
            signature = inspect.signature(value)
            types = [*(parameter.annotation for parameter in signature.parameters.values()), signature.return_annotation]
            assert inspect.Signature.empty not in types, f"{module}.{name} has arguments or a result without a type"
