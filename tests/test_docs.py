"""The documentation says what is there: pages are current, links lead somewhere, commands exist."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgepack import errors, topics
from edgepack.cli import root as edgepack
from edgepack_agent.cli import root as agent
from edgepack_agent.settings import load_config
from edgepack_packager.adapters.cards import read_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
TEMPLATES = sorted(ROOT.glob("fleet/edgepack_fleet/web/templates/*.html"))
COMMANDS = {"edgepack": edgepack, "edgepack-agent": agent}


def blocks(page: Path, language: str) -> Iterator[str]:
    found = re.findall(
        rf"^ *```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL
    )
    yield from (block.replace("\\\n", " ") for block in found)


def commands() -> list[tuple[str, list[str]]]:
    """Return every command of ours in a shell block of the documentation, with its page."""
    found = []
    for page in PAGES:
        for block in (*blocks(page, "sh"), *blocks(page, "bash"), *blocks(page, "console")):
            for line in block.splitlines():
                inner = re.search(r"\$\((edgepack[^)]*)\)", line)
                words = shlex.split(inner[1] if inner else line.removeprefix("$ "), comments=True)
                if words and words[0] in COMMANDS:
                    found.append((page.name, words))
    return found + shown_on_pages()


def shown_on_pages() -> list[tuple[str, list[str]]]:
    """Return every command that a web page tells people to run."""
    return [
        (page.name, shlex.split(text.replace('\\"', '"')))
        for page in TEMPLATES
        for text in re.findall(r'"(edgepack(?:-agent)? (?:[^"\\]|\\")*)"', page.read_text())
    ]


def test_generated_pages_are_current() -> None:
    script = [sys.executable, ROOT / "scripts" / "docs.py", "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [t for t in targets if not (page.parent / t).exists()]


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda v: " ".join(v)[:60])
def test_commands_and_their_flags_exist(page: str, words: list[str]) -> None:
    command: click.Command = COMMANDS[words[0]]
    context = click.Context(command, info_name=words[0])
    flags = {o for p in command.params for o in p.opts}
    for word in words[1:]:
        if isinstance(command, click.Group) and not word.startswith("-"):
            found = command.get_command(context, word)
            if found is None:
                continue
            command, context = found, click.Context(found, info_name=word, parent=context)
            flags |= {o for p in command.params for o in p.opts} | {"--help", "--version"}
    unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in flags]
    assert not unknown, f"{page}: {unknown}"
    assert not isinstance(command, click.Group) or "--help" in words, f"{page}: no such command"


def test_the_documentation_has_commands() -> None:
    assert len(commands()) > 15


def test_every_topic_is_described() -> None:
    text = (ROOT / "docs/reference/mqtt.md").read_text()
    kinds = re.findall(r"ep/1/\w/\{\w\}/(?:up|dn)/\w+", topics.__doc__ or "")
    assert kinds
    assert not [kind for kind in kinds if kind not in text]


def test_every_exit_code_is_described() -> None:
    text = (ROOT / "docs/reference/errors.md").read_text()
    for name in errors.__all__:
        assert re.search(rf"\| {getattr(errors, name).exit_code} \|.*`{name}`", text), name


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs/reference/agent-config.md", "yaml")
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    assert load_config(path).listen == "127.0.0.1:9000"


def test_the_example_recipe_is_valid(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs/reference/recipe.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "labels.txt").write_text("yes\nno\n")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    kinds = [step.kind for step in recipe.compression]
    assert kinds == ["distil", "low_rank", "prune_structured", "prune_magnitude", "qat"]
    assert recipe.settings["exclude"] == ("fc1",)
    assert recipe.card.labels == ("yes", "no")
