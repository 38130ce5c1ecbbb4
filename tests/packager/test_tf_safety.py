"""SavedModels and Keras files that reach outside of themselves: refused before anything runs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import edgepack as edgepack_package
import edgepack_packager
from edgepack.errors import UsageError
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.source import open_source

MAKE_AND_ASK = """
import json
import sys
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from edgepack.errors import EdgepackError
from edgepack_packager.workers.tf import export

home = Path(sys.argv[1])
secret = home / "secret.txt"
secret.write_bytes(b"a secret of 32 bytes, in the home")
raw = tf.raw_ops
words = tf.lookup.TextFileInitializer(
    str(secret), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
    tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
)


class Model(tf.Module):
    def __init__(self, act):
        self.scale = tf.Variable(tf.ones(4))
        self.act = act

    @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, name="x")])
    def serve(self, x):
        return {"y": self.act(x) * self.scale}


def reads(x):
    return x + raw.ImmutableConst(dtype=tf.float32, shape=(4,), memory_region_name=str(secret))


def saves(x):
    done = raw.SaveV2(
        prefix=str(home / "ran"), tensor_names=["x"], shape_and_slices=[""], tensors=[x]
    )
    with tf.control_dependencies([done]):
        return tf.identity(x)


def debugs(x):
    return raw.DebugIdentityV3(input=x, tensor_name="x:0", debug_urls=[f"file://{home}/ran"])


def looks_up(x):
    table = raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
    filled = raw.InitializeTableFromTextFileV2(
        table_handle=table, filename=str(secret), key_index=-2, value_index=-1
    )
    with tf.control_dependencies([filled]):
        return x + tf.cast(raw.LookupTableSizeV2(table_handle=table), tf.float32)


def says(name, kind, trust=False):
    out = home / f"out-{name}-{trust}"
    out.mkdir()
    plain = {"shapes": {}, "signature": None, "source": str(home / name)}
    try:
        export(plain | {"kind": kind, "trust": trust}, out, lambda _: None)
    except EdgepackError as error:
        return [error.reason, f"{error.what} {error.why} {error.fix}"]
    return ["done", ""]


told = {}
for act in (tf.identity, reads, saves, debugs, looks_up):
    model = Model(act)
    name = act.__name__
    tf.saved_model.save(model, str(home / name), signatures={"serving_default": model.serve})
    told[name] = says(name, "saved_model")
    (home / "ran").unlink(missing_ok=True)
table = Model(tf.identity)
table.words = tf.lookup.StaticVocabularyTable(words, 1)
tf.saved_model.save(table, str(home / "asset"), signatures={"serving_default": table.serve})
told["asset"] = says("asset", "saved_model")
graph = home / "asset" / "saved_model.pb"
edited = SavedModel.FromString(graph.read_bytes())
edited.meta_graphs[0].asset_file_def[0].filename = "../../secret.txt"
(home / "stray").mkdir()
(home / "stray" / "saved_model.pb").write_bytes(edited.SerializeToString())
told["stray"] = says("stray", "saved_model")
told["trusted"] = says("reads", "saved_model", trust=True)
with tf.Graph().as_default():
    v1 = tf.compat.v1
    x = v1.placeholder(tf.float32, (None, 4), name="x")
    y = tf.identity(x * v1.get_variable("scale", (4,)))
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(home / "old"), {"x": x}, {"y": y})
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder = v1.saved_model.Builder(str(home / "old-saves"))
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, main_op=saves(tf.ones(4)).op
        )
        builder.save()
for name in ("old", "old-saves"):
    told[name] = says(name, "saved_model")
own = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Lambda(lambda x: 2 * x)])
own.save(home / "lambda.keras")
told["lambda"] = says("lambda.keras", "keras")
told["trusted lambda"] = says("lambda.keras", "keras", trust=True)
told["written"] = sorted(path.name for path in home.glob("ran*"))
(home / "told.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What opening says about every model, each with what it does."""
    home = tmp_path_factory.mktemp("unsafe")
    for package in (edgepack_package, edgepack_packager):
        folder = Path(str(package.__file__)).parent
        (home / folder.name).symlink_to(folder)
    where, _ = toolchains.install(toolchains.find_toolchain("tf"))
    done = subprocess.run(
        [where.python, "-c", MAKE_AND_ASK, home], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(home), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((home / "told.json").read_text()))


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("reads", "ImmutableConst"),
        ("saves", "saving"),
        ("debugs", "DebugIdentityV3"),
        ("looks_up", "InitializeTableFromTextFileV2"),
        ("old-saves", "SaveV2"),
        ("stray", "asset ../../secret.txt"),
        ("lambda", "Lambda"),
    ],
)
def test_what_reaches_outside_is_refused(told: dict[str, Any], name: str, operator: str) -> None:
    reason, text = told[name]
    assert reason == "unsafe_layer", told[name]
    assert operator in text
    assert "--trust-source" in text
    assert told["written"] == []


@pytest.mark.toolchain
@pytest.mark.parametrize("name", ["identity", "asset", "old", "trusted", "trusted lambda"])
def test_what_does_not_or_is_trusted_is_opened(told: dict[str, Any], name: str) -> None:
    assert told[name][0] == "done", told[name]


def test_links_out_of_a_saved_model_are_refused(tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model, elsewhere):
        folder.mkdir()
    (model / "saved_model.pb").write_bytes(b"graph")
    (elsewhere / "data").write_bytes(b"weights")
    (model / "variables").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(model)
    with pytest.raises(UsageError) as refused:
        open_source(model)
    assert refused.value.reason == "link_outside"
    first = open_source(model, trust=True).sha256
    (elsewhere / "data").write_bytes(b"others!")
    assert open_source(model, trust=True).sha256 != first
