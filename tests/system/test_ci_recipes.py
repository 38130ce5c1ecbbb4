"""The recipes for CI services: their form by each service's schema, their steps by running them.

What a service does itself (checking out, keeping artifacts, credentials) is played by the test;
every shell step is run as it stands, against a running fleet with a real device.
"""

import base64
import os
import re
import shutil
import subprocess
import tarfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from digits import calibration_npz, digits_onnx, evaluation_npz, exam_npz
from system.harness import BIN, Site, site

CI = Path(__file__).parents[2] / "deploy" / "ci"
GITHUB = CI / "github" / "release-model.yml"
GITLAB = CI / "gitlab" / ".gitlab-ci.yml"
JENKINS = CI / "jenkins" / "Jenkinsfile"


@pytest.mark.parametrize(
    ("recipe", "schema"), [(GITHUB, "vendor.github-workflows"), (GITLAB, "vendor.gitlab-ci")]
)
def test_a_recipe_has_the_form_that_its_service_asks_for(recipe: Path, schema: str) -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", schema, recipe]
    command += ["--data-transform", "gitlab-ci"] if recipe is GITLAB else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_recipe_shows_a_secret() -> None:
    for recipe in (GITHUB, GITLAB, JENKINS):
        text = recipe.read_text()
        assert not re.search(r"set -x|echo .*(TOKEN|PASSPHRASE|KEYS)", text)
        assert "--token" not in text, "a command line can be read by every process"
        assert "rm -rf" in text, "the keys are removed"


# -- the steps of each recipe, as `(script, environment of that step)`

Step = tuple[str, dict[str, str]]


def github_steps(values: dict[str, str]) -> Iterator[Step]:
    def filled(text: object) -> str:
        return re.sub(r"\$\{\{ \w+\.(\w+) \}\}", lambda found: values[found[1]], str(text))

    recipe = yaml.safe_load(GITHUB.read_text())
    whole = {k: filled(v) for k, v in recipe["env"].items()}
    for step in recipe["jobs"]["release"]["steps"]:
        if "run" in step:
            own = {k: filled(v) for k, v in step.get("env", {}).items()}
            yield f"set -eo pipefail\n{step['run']}", whole | own


def gitlab_steps(_values: dict[str, str]) -> Iterator[Step]:
    recipe = yaml.safe_load(GITLAB.read_text())
    first = recipe["default"]["before_script"]
    for stage in recipe["stages"]:
        job = recipe[stage]
        lines = [x for part in job["script"] for x in (part if isinstance(part, list) else [part])]
        yield "\n".join(["set -eo pipefail", *first, *lines]), recipe["variables"]
        if "after_script" in job:
            yield "\n".join(job["after_script"]), {}


def jenkins_steps(_values: dict[str, str]) -> Iterator[Step]:
    text = JENKINS.read_text()
    assert text.count("{") == text.count("}")
    whole = dict(re.findall(r"^ +(\w+) = '(.*)'$", text, re.MULTILINE))
    scripts = re.findall(r"sh '''\n(.*?)'''|sh '([^'\n]+)'", text, re.DOTALL)
    install, *rest = (textwrap.dedent(several or one) for several, one in scripts)
    assert "pip install" in install, "left out: it is what the test runs in"
    for script in rest:
        yield f"set -e\n{script}", whole


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("ci")) as found:
        found.edgepack("fleet", "groups", "create", "lab")
        key = found.root / "publisher.pem"
        found.edgepack("keys", "create", key, "--no-passphrase")
        found.add_agent("cam", "onnx")
        # The first release of a line makes the line's key: by hand, as the how-to says.
        first = found.edgepack(
            "build", digits_onnx(found.root / "digits.onnx"), "--target", "onnx", "--precision",
            "fp32", "--name", "digits", "--version", "0.1.0", "--key", key, "--out",
            found.root / "dist",
        )  # fmt: skip
        found.publish([Path(bundle["path"]) for bundle in first["bundles"]])
        with tarfile.open(found.root / "keys.tar.gz", "w:gz") as packed:
            packed.add(key, "publisher.pem")
            packed.add(found.publisher, "publisher", filter=without_root_keys)
        yield found


def without_root_keys(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name.startswith("root-") else entry


def run(steps: Iterator[Step], folder: Path, place: Site, values: dict[str, str]) -> None:
    """Run STEPS in FOLDER, one shell each, as a runner does."""
    digits_onnx(folder / "model.onnx")
    calibration_npz(folder / "calibration.npz")
    evaluation_npz(folder / "evaluate.npz")
    exam_npz(folder / "exam.npz")
    (folder / ".venv").symlink_to(BIN.parent)
    env = place.env | values | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for script, more in steps:
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=env | more, capture_output=True, text=True,
            check=False, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        assert place.env["EDGEPACK_FLEET_TOKEN"] not in done.stdout + done.stderr


RECIPES: dict[str, Callable[[dict[str, str]], Iterator[Step]]] = {
    "1.0.0": github_steps,
    "2.0.0": gitlab_steps,
    "3.0.0": jenkins_steps,
}


@pytest.mark.scale
@pytest.mark.mosquitto
@pytest.mark.system
@pytest.mark.parametrize("version", RECIPES)
def test_every_step_runs_and_the_device_has_the_release(
    place: Site, tmp_path: Path, version: str
) -> None:
    """Every recipe unpacks the same keys: what was published since is taken from the fleet."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    packed = place.root / "keys.tar.gz"
    keys: str | Path = packed
    if version == "1.0.0":
        keys = base64.b64encode(packed.read_bytes()).decode()
    elif version == "2.0.0":
        keys = tmp_path / "keys.b64"
        Path(keys).write_bytes(base64.b64encode(packed.read_bytes()))
    values = {
        "version": version, "MODEL_VERSION": version, "CI_COMMIT_TAG": f"v{version}",
        "CI_PROJECT_DIR": str(folder), "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "FLEET_GROUP": "lab",
        "ROLLOUT_SOAK": "0", "PUBLISHER_KEYS": str(keys), "EDGEPACK_PASSPHRASE": "unused",
        "EDGEPACK_FLEET_TOKEN": place.env["EDGEPACK_FLEET_TOKEN"],
        "EDGEPACK_FLEET_URL": place.env["EDGEPACK_FLEET_URL"],
    }  # fmt: skip
    run(RECIPES[version](values), folder, place, values)
    assert place.version("cam") == version
    assert not list(tmp_path.glob("**/publisher.pem")), "no key is left"
    bundles: list[Any] = list((folder / "dist").glob(f"digits-{version}-*.edgepack"))
    assert bundles
    if version == "1.0.0":
        assert "digits" in (tmp_path / "summary.md").read_text()
    shutil.rmtree(folder / "dist")
