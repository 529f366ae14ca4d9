"""Freezing checkpoints of graphs that are not ours."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.errors import StageError, UserError
from bert_export.export import freeze
from bert_export.export.freeze import freeze_checkpoint
from tests.command_line import ROOT, refused, run
from tests.export import tf1_graphs
from tests.export.tf1_graphs import random, read, run_checkpoint, run_frozen, v1

OUTPUT = "score_student/output_student"
X = {"x:0": random(5, 6), "keep_prob:0": 1.0}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return tf1_graphs.save(tmp_path_factory.mktemp("mlp"), tf1_graphs.mlp)


@pytest.fixture
def copy(mlp, tmp_path):
    """A copy of the MLP's checkpoint, to be harmed."""
    directory = tmp_path / "copy"
    shutil.copytree(Path(mlp).parent, directory)
    return str(directory / "model.ckpt")


def refusal(error, *arguments, **keywords):
    """The message of a freeze that fails and leaves nothing in the output's place."""
    output = Path(arguments[2])
    with pytest.raises(error) as caught:
        freeze_checkpoint(*arguments, **keywords)
    assert not list(output.parent.glob(f"*{output.name}*"))
    assert not list(output.parent.glob(f".{output.name}*"))
    return str(caught.value)


def assert_same(checkpoint, path, outputs, feed):
    expected = run_checkpoint(checkpoint, outputs, feed)
    for one, other in zip(expected, run_frozen(path, outputs, feed), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6)


def assert_no_training_nodes(path):
    graph_def = read(path)
    functions = [n for f in graph_def.library.function for n in f.node_def]
    # A trained While (not Enter and Exit) keeps what it saved for its gradient.
    left = [] if any(n.op.endswith("While") for n in graph_def.node) else functions
    for node in [*graph_def.node, *left]:
        if "/while_grad/" not in node.name:
            assert not node.name.startswith(("gradients", "save/", "loss", "beta1"))
    for node in [*graph_def.node, *functions]:
        assert "Adam" not in node.name
        assert not node.op.startswith(("Var", "ReadVariable", "Assign", "Resource"))
        assert node.op not in ("CheckNumerics", "StopGradient")
        assert not node.device
        assert "_class" not in node.attr


@pytest.mark.parametrize("resource", [True, False], ids=["resource", "ref"])
def test_mlp(resource, tmp_path):
    build = functools.partial(tf1_graphs.mlp, resource)
    checkpoint = tf1_graphs.save(tmp_path / "mlp", build)
    path = tmp_path / "mlp.pb"
    frozen = freeze_checkpoint(checkpoint, OUTPUT, path)
    assert_same(checkpoint, path, [f"{OUTPUT}:0"], X)
    assert_no_training_nodes(path)
    # The labels are of the loss alone.
    assert [i.name for i in frozen.inputs] == ["x", "keep_prob"]
    assert len(read(path).node) == frozen.nodes_after < frozen.nodes_before / 5
    table = frozen.table()
    for expected in (
        "float32  [?, 6]",
        f"output  {OUTPUT}",
        f"{frozen.nodes_before} before, {frozen.nodes_after} after",
        f"({path.stat().st_size} bytes)",
        "same numbers as the checkpoint",
    ):
        assert expected in table


@pytest.mark.parametrize(
    ("resource", "default", "fused", "first"),
    [
        (True, False, True, False),
        (True, True, False, False),
        (True, False, True, True),
        (False, True, True, True),
        (False, False, False, True),
    ],
)
def test_batch_norm_uses_its_moving_averages(resource, default, fused, first, tmp_path):
    build = functools.partial(tf1_graphs.conv, resource, default, fused)
    if first:
        with tf1_graphs.first_control_flow():
            checkpoint = tf1_graphs.save(tmp_path / "conv", build)
    else:
        checkpoint = tf1_graphs.save(tmp_path / "conv", build)
    path = tmp_path / "conv.pb"
    freeze_checkpoint(checkpoint, "scores", path)
    assert_no_training_nodes(path)
    images = 2 * random(4, 8, 8, 3) - 1
    feed = {"image:0": images, "is_training:0": False}
    assert_same(checkpoint, path, ["scores:0"], feed)
    # One row alone gets the same scores: nothing is of the batch.
    (whole,) = run_frozen(path, ["scores:0"], feed)
    (row,) = run_frozen(path, ["scores:0"], {**feed, "image:0": images[:1]})
    np.testing.assert_allclose(row[0], whole[0], rtol=1e-5, atol=1e-6)
    # Which the switch decides, not the weights: it still works.
    feed["is_training:0"] = True
    (training,) = run_frozen(path, ["scores:0"], feed)
    assert np.abs(training - whole).max() > 1e-3


@pytest.mark.parametrize("first", [True, False], ids=["Enter", "While"])
@pytest.mark.parametrize("resource", [True, False], ids=["resource", "ref"])
def test_lstm(resource, first, tmp_path):
    build = functools.partial(tf1_graphs.lstm, resource)
    if first:
        with tf1_graphs.first_control_flow():
            checkpoint = tf1_graphs.save(tmp_path / "lstm", build)
    else:
        checkpoint = tf1_graphs.save(tmp_path / "lstm", build)
    path = tmp_path / "lstm.pb"
    frozen = freeze_checkpoint(checkpoint, "state, outputs", path)
    assert [t.name for t in frozen.outputs] == ["state:0", "outputs:0"]
    assert_no_training_nodes(path)
    for n, time in ((3, 9), (1, 1)):
        ids = np.arange(n * time).reshape(n, time) % 11
        lengths = np.arange(n) % time + 1
        feed = {"ids:0": ids, "lengths:0": lengths}
        assert_same(checkpoint, path, ["state:0", "outputs:0"], feed)


def test_names_with_and_without_index_and_blanks(mlp, tmp_path):
    path = tmp_path / "a.pb"
    names = f" {OUTPUT}:0 , {OUTPUT},score_student/split:2,score_student/split:0,"
    frozen = freeze_checkpoint(mlp, names, path)
    outputs = [f"{OUTPUT}:0", "score_student/split:2", "score_student/split:0"]
    assert [t.name for t in frozen.outputs] == outputs
    assert_same(mlp, path, outputs, X)


@pytest.mark.parametrize("names", ["", " ", ", ,"])
def test_no_name(names, mlp, tmp_path):
    message = refusal(UserError, mlp, names, tmp_path / "a.pb")
    assert "--output_node_names: name the nodes" in message


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("output_student", OUTPUT),
        ("score_student/ouput_studnet:0", OUTPUT),
        ("import/score_student/output_student", OUTPUT),
        ("SCORE_STUDENT/OUTPUT_STUDENT", OUTPUT),
        ("^score_student/output_student", OUTPUT),
        ("score_student/hidden/MatMull", "score_student/hidden/MatMul"),
    ],
)
def test_a_wrong_name_gets_the_closest_ones(name, closest, mlp, tmp_path):
    message = refusal(UserError, mlp, name, tmp_path / "a.pb")
    assert f"model.ckpt.meta has no node {name.removesuffix(':0')!r}" in message
    assert f"\n  closest: {closest}" in message
    likely = message.partition("likely outputs: ")[2]
    assert OUTPUT in likely
    assert "gradients" not in likely
    assert "save/" not in likely
    assert "Adam" not in likely


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{OUTPUT}:1", "has one output, :0"),
        ("score_student/split:3", "has the outputs :0 to :2"),
        ("score_student/split:x", "has the outputs :0 to :2"),
        ("Adam", "(AssignAddVariableOp) has no output"),
        ("save/restore_all", "(NoOp) has no output"),
        ("score_student/logits/kernel", "(VarHandleOp) stands for a variable"),
    ],
)
def test_names_that_are_no_tensors(name, expected, mlp, tmp_path):
    assert expected in refusal(UserError, mlp, name, tmp_path / "a.pb")


@pytest.mark.parametrize("suffix", [".meta", ".index", ".data-00000-of-00001"])
def test_a_file_of_the_checkpoint_in_place_of_its_prefix(suffix, mlp, tmp_path):
    path = tmp_path / "a.pb"
    assert freeze_checkpoint(mlp + suffix, OUTPUT, path).checkpoint == mlp
    assert_same(mlp, path, [f"{OUTPUT}:0"], X)


def test_a_directory_means_its_newest_checkpoint(mlp, tmp_path):
    path = tmp_path / "a.pb"
    frozen = freeze_checkpoint(str(Path(mlp).parent), OUTPUT, path)
    assert frozen.checkpoint == mlp
    assert mlp in frozen.table()


def test_a_directory_without_checkpoint_file_lists_what_it_has(copy, tmp_path):
    directory = Path(copy).parent
    (directory / "checkpoint").unlink()
    message = refusal(UserError, str(directory), OUTPUT, tmp_path / "a.pb")
    assert "has no file `checkpoint`" in message
    assert message.endswith(": model.ckpt")


def test_the_first_checkpoint_format(tmp_path):
    checkpoint = tf1_graphs.save(
        tmp_path / "v1", tf1_graphs.mlp, write_version=v1.train.SaverDef.V1
    )
    assert not Path(f"{checkpoint}.index").exists()
    freeze_checkpoint(checkpoint, OUTPUT, tmp_path / "a.pb")
    assert_same(checkpoint, tmp_path / "a.pb", [f"{OUTPUT}:0"], X)


@pytest.mark.parametrize("suffix", [".meta", ".index", ".data-00000-of-00001"])
def test_a_missing_file_is_named(suffix, copy, tmp_path):
    os.unlink(copy + suffix)
    message = refusal(UserError, copy, OUTPUT, tmp_path / "a.pb")
    assert f"there is no file {copy}{suffix}" in message


def test_a_missing_directory(tmp_path):
    prefix = str(tmp_path / "nowhere" / "model.ckpt")
    message = refusal(UserError, prefix, OUTPUT, tmp_path / "a.pb")
    assert "there is no such directory" in message


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_a_damaged_shard_or_index(suffix, harm, copy, tmp_path):
    file = Path(copy + suffix)
    data = bytearray(file.read_bytes())
    if harm == "truncated":
        del data[len(data) // 2 :]
    else:
        for place in range(0, len(data), 16):
            data[place] ^= 0x55
    file.write_bytes(data)
    message = refusal(UserError, copy, OUTPUT, tmp_path / "a.pb")
    assert "model.ckpt.data-00000-of-00001 is damaged" in message
    assert "copy it again" in message


@pytest.mark.parametrize("content", [b"", b"\xff\xfe not a graph", b"\x0a\x05ab"])
def test_a_damaged_meta(content, copy, tmp_path):
    Path(f"{copy}.meta").write_bytes(content)
    message = refusal(UserError, copy, OUTPUT, tmp_path / "a.pb")
    assert f"{copy}.meta" in message


def test_a_checkpoint_of_another_graph(copy, tmp_path):
    other = tf1_graphs.save(tmp_path / "other", tf1_graphs.lstm)
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(other + suffix, copy + suffix)
    message = refusal(UserError, copy, OUTPUT, tmp_path / "a.pb")
    assert "the checkpoint has no " in message
    assert "they are of different models" in message


def test_a_checkpoint_of_other_shapes(copy, tmp_path):
    build = functools.partial(tf1_graphs.mlp, inner=9)
    other = tf1_graphs.save(tmp_path / "other", build)
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(other + suffix, copy + suffix)
    message = refusal(UserError, copy, OUTPUT, tmp_path / "a.pb")
    assert "the checkpoint does not fit its graph: score_student/" in message


def test_variables_that_were_not_saved(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        tf1_graphs.mlp()
        session.run(v1.global_variables_initializer())
        saved = [v for v in v1.global_variables() if "logits" not in v.name]
        prefix = v1.train.Saver(saved).save(session, str(tmp_path / "model.ckpt"))
    message = refusal(UserError, prefix, OUTPUT, tmp_path / "a.pb")
    assert "2 variables that have no value" in message
    assert "score_student/logits/kernel, score_student/logits/bias" in message
    # What the outputs do not need may be missing.
    path = tmp_path / "hidden.pb"
    freeze_checkpoint(prefix, "score_student/hidden/BiasAdd", path)
    assert_same(prefix, path, ["score_student/hidden/BiasAdd:0"], {"x:0": X["x:0"]})


def test_saver_with_names_of_its_own_and_shards(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        tf1_graphs.mlp()
        session.run(v1.global_variables_initializer())
        names = {f"other/{v.op.name}": v for v in v1.global_variables()}
        saver = v1.train.Saver(names, sharded=True)
        prefix = saver.save(session, str(tmp_path / "model.ckpt-3"))
    freeze_checkpoint(prefix, OUTPUT, tmp_path / "a.pb")
    assert_same(prefix, tmp_path / "a.pb", [f"{OUTPUT}:0"], X)


def test_an_iterator_becomes_placeholders(tmp_path):
    def build():
        data = tf.data.Dataset.from_tensor_slices((random(9, 6), np.arange(9) % 3))
        batches = v1.data.make_initializable_iterator(data.repeat().batch(4))
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, batches.initializer)
        x, y = batches.get_next()
        with v1.variable_scope("net"):
            logits = tf1_graphs.dense(x, "logits", 3)
        tf.nn.softmax(logits, name="probabilities")
        loss = v1.losses.sparse_softmax_cross_entropy(y, logits)
        return tf1_graphs.minimize(loss), {}

    checkpoint = tf1_graphs.save(tmp_path / "iterator", build)
    path = tmp_path / "a.pb"
    frozen = freeze_checkpoint(checkpoint, "probabilities", path)
    assert [(i.name, i.source) for i in frozen.inputs] == [
        ("IteratorGetNext/output_0", "IteratorGetNext:0")
    ]
    assert "in place of IteratorGetNext:0" in frozen.table()
    assert_no_training_nodes(path)
    assert not read(path).library.function
    x = random(3, 6)
    (expected,) = run_checkpoint(
        checkpoint, ["probabilities:0"], {"IteratorGetNext:0": x}
    )
    (found,) = run_frozen(path, ["probabilities:0"], {"IteratorGetNext/output_0:0": x})
    np.testing.assert_allclose(found, expected, atol=1e-6)
    message = refusal(UserError, checkpoint, "IteratorGetNext", tmp_path / "b.pb")
    assert "IteratorGetNext (IteratorGetNext)" in message


def test_a_queue_becomes_placeholders(tmp_path):
    def build():
        queue = v1.FIFOQueue(9, [tf.float32], [[6]])
        x = queue.dequeue_many(2)
        net = tf1_graphs.dense(x, "net", 3)
        tf.identity(net, "result")
        enqueue = queue.enqueue_many([tf.constant(random(9, 6))])
        return tf.group(enqueue), {}

    checkpoint = tf1_graphs.save(tmp_path / "queue", build, steps=1)
    frozen = freeze_checkpoint(checkpoint, "result", tmp_path / "a.pb")
    (one,) = frozen.inputs
    assert one.source.startswith("fifo_queue_DequeueMany:")
    assert_no_training_nodes(tmp_path / "a.pb")


def test_updates_in_the_forward_path_are_left_out(tmp_path):
    """As in batch norms with `updates_collections=None`."""

    def build():
        x = v1.placeholder(tf.float32, [None, 6], "x")
        count = v1.get_variable("count", [], initializer=v1.zeros_initializer())
        bound = v1.placeholder(tf.float32, [], "bound")
        update = count.assign_add(1.0)
        check = v1.debugging.Assert(tf.reduce_max(x) < bound, ["too large"])
        with tf.control_dependencies([tf.group(update, check)]):
            tf.identity(tf1_graphs.dense(x, "net", 3), "result")
        return update, {}

    checkpoint = tf1_graphs.save(tmp_path / "updates", build)
    path = tmp_path / "a.pb"
    freeze_checkpoint(checkpoint, "result", path)
    feed = {"x:0": random(3, 6), "bound:0": 100.0}
    assert_same(checkpoint, path, ["result:0"], feed)
    assert_no_training_nodes(path)
    # Assertions in the same group stay.
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        run_frozen(path, ["result:0"], {**feed, "bound:0": -100.0})
    message = refusal(UserError, checkpoint, "AssignAddVariableOp", tmp_path / "b.pb")
    assert "no output" in message


def test_what_an_update_returns_cannot_be_frozen(tmp_path):
    def build():
        with v1.variable_scope("", use_resource=False):
            count = v1.get_variable("count", [], initializer=v1.zeros_initializer())
        update = tf.identity(v1.assign_add(count, 1.0), "updated")
        return update, {}

    checkpoint = tf1_graphs.save(tmp_path / "updates", build)
    message = refusal(UserError, checkpoint, "updated", tmp_path / "a.pb")
    assert "AssignAdd (AssignAdd); these change variables" in message


@pytest.mark.parametrize("first", [True, False], ids=["Enter", "While"])
def test_rows_of_variables_inside_a_loop(first, tmp_path):
    """As in decoders: the embedding of what was generated before."""

    def build():
        ids = v1.placeholder(tf.int32, [None], "ids")
        with v1.variable_scope("net", use_resource=True):
            table = v1.get_variable("table", [9, 4])
            shifts = v1.get_variable("shifts", [9, 9], initializer=shift)
        zeros = tf.zeros([tf.shape(ids)[0], 4])

        def body(step, ids, total):
            rows = tf.gather(shifts, ids)
            after = tf.cast(tf.gather(rows, ids, axis=1, batch_dims=1), tf.int32)
            return step + 1, after, total + tf.gather(table, after)

        _, _, total = tf.while_loop(lambda step, *_: step < 3, body, (0, ids, zeros))
        tf.identity(total, "total")
        return tf.no_op(), {}

    def shift(shape, dtype, partition_info=None):
        return tf.cast((tf.range(9)[:, None] + tf.range(9)) % 9, dtype)

    if first:
        with tf1_graphs.first_control_flow():
            checkpoint = tf1_graphs.save(tmp_path / "loop", build)
    else:
        checkpoint = tf1_graphs.save(tmp_path / "loop", build)
    path = tmp_path / "a.pb"
    freeze_checkpoint(checkpoint, "total", path)
    assert_no_training_nodes(path)
    assert_same(checkpoint, path, ["total:0"], {"ids:0": [3, 0, 8, 8]})


def test_batched_gather_from_a_variable(tmp_path):
    def build():
        ids = v1.placeholder(tf.int32, [3, None], "ids")
        with v1.variable_scope("net", use_resource=True):
            table = v1.get_variable("table", [3, 5, 2])
        tf.gather(table, ids, batch_dims=1, name="rows")
        return tf.no_op(), {}

    checkpoint = tf1_graphs.save(tmp_path / "batched", build)
    path = tmp_path / "a.pb"
    freeze_checkpoint(checkpoint, "rows", path)
    feed = {"ids:0": [[0, 1, 4], [2, 2, 2], [3, 0, 1]]}
    assert_same(checkpoint, path, ["rows:0"], feed)


def test_lookup_tables_are_explained(tmp_path):
    def build():
        words = v1.placeholder(tf.string, [None], "words")
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(
                ["a", "b"], tf.constant([0, 1], tf.int64)
            ),
            1,
        )
        embeddings = v1.get_variable("table", [3, 2])
        ids = tf.identity(table.lookup(words), "ids")
        tf.identity(tf.nn.embedding_lookup(embeddings, ids), "result")
        return tf.no_op(), {}

    checkpoint = tf1_graphs.save(tmp_path / "lookup", build)
    message = refusal(UserError, checkpoint, "result", tmp_path / "a.pb")
    assert "HashTableV2" in message
    assert "these are lookup tables" in message


def test_python_functions_are_explained(tmp_path):
    def build():
        x = v1.placeholder(tf.float32, [None], "x")
        y = v1.py_func(lambda value: value, [x], tf.float32)
        tf.multiply(y, v1.get_variable("v", []), "result")
        return tf.no_op(), {}

    checkpoint = tf1_graphs.save(tmp_path / "python", build)
    message = refusal(UserError, checkpoint, "result", tmp_path / "a.pb")
    assert "these call Python functions" in message


def test_sparse_inputs_of_an_iterator_are_explained(tmp_path):
    def build():
        data = tf.data.Dataset.from_tensors(tf.sparse.eye(3)).repeat()
        sparse = v1.data.make_one_shot_iterator(data).get_next()
        weights = v1.get_variable("v", [3, 1])
        result = tf.sparse.sparse_dense_matmul(sparse, weights)
        return tf.identity(result, "result"), {}

    checkpoint = tf1_graphs.save(tmp_path / "sparse", build)
    message = refusal(UserError, checkpoint, "result", tmp_path / "a.pb")
    assert "is a variant" in message


def test_random_outputs_are_explained(tmp_path):
    def build():
        x = v1.placeholder(tf.float32, [None, 6], "x")
        net = tf1_graphs.dense(v1.nn.dropout(x, rate=0.5), "net", 3)
        return tf.identity(net, "result"), {x: random(2, 6)}

    checkpoint = tf1_graphs.save(tmp_path / "random", build)
    message = refusal(UserError, checkpoint, "result", tmp_path / "a.pb")
    assert "the outputs are random" in message
    assert "dropout/random_uniform/RandomUniform (RandomUniform)" in message


def picky(*, number):
    """A graph that takes only rows of `number`."""

    def build():
        x = v1.placeholder(tf.int32, [None, 2], "x")
        check = v1.debugging.Assert(tf.reduce_all(tf.equal(x, number)), ["what?"])
        with tf.control_dependencies([check]):
            x = tf.identity(x)
        net = tf1_graphs.dense(tf.cast(x, tf.float32), "net", 3)
        return tf.identity(net, "result"), {x: np.full([1, 2], number)}

    return build


def test_tamer_inputs_are_tried(tmp_path):
    checkpoint = tf1_graphs.save(tmp_path / "picky", picky(number=1))
    frozen = freeze_checkpoint(checkpoint, "result", tmp_path / "a.pb")
    assert "integers all 1" in frozen.check


def test_nothing_unproven_is_written_and_real_inputs_prove_it(tmp_path):
    checkpoint = tf1_graphs.save(tmp_path / "picky", picky(number=1234))
    output = tmp_path / "a.pb"
    message = refusal(UserError, checkpoint, "result", output)
    assert "what?" in message
    assert "--check_inputs=FILE.npz, with an array for each of x (int32 [?, 2])" in (
        message
    )
    inputs = tmp_path / "inputs.npz"
    for arrays, expected in (
        ({"x": np.full([3, 2], 1, np.int32)}, "proves nothing"),
        ({"x": np.full([3, 2], 1234.0, np.float32)}, "x is float32, expected int32"),
        ({"x": np.full([3, 3], 1234, np.int32)}, "has the shape [3, 3]"),
        ({"y": np.full([3, 2], 1234, np.int32)}, "has y; expected"),
        ({}, "has nothing; expected"),
        ({"x": np.zeros([0, 2], np.int32)}, "is empty"),
    ):
        np.savez(inputs, **arrays)
        message = refusal(
            UserError, checkpoint, "result", output, check_inputs=str(inputs)
        )
        assert expected in message
    for content in (b"", b"no archive", b"PK\x03\x04"):
        inputs.write_bytes(content)
        message = refusal(
            UserError, checkpoint, "result", output, check_inputs=str(inputs)
        )
        assert f"cannot read {inputs}" in message
    np.savez(inputs, **{"x:0": np.full([3, 2], 1234, np.int32)})
    frozen = freeze_checkpoint(checkpoint, "result", output, check_inputs=str(inputs))
    assert f"on the inputs in {inputs}" in frozen.check


def test_other_numbers_are_not_published(mlp, tmp_path, monkeypatch):
    """A frozen graph with a weight changed on its way to the file."""
    serialize = freeze.session_graph.serialize

    def change(graph_def):
        for node in graph_def.node:
            if node.name == "score_student/logits/bias":
                value = tf.make_ndarray(node.attr["value"].tensor).copy()
                value[0] += 1e-3
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        return serialize(graph_def)

    monkeypatch.setattr(freeze.session_graph, "serialize", change)
    message = refusal(StageError, mlp, OUTPUT, tmp_path / "a.pb")
    assert f"other numbers for {OUTPUT}:0" in message


def test_more_than_two_gigabytes(copy, tmp_path):
    """Refused by the shapes in the graph, before any weight is loaded."""
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, [None, 1], "x")
        large = v1.get_variable("large", [1, 2**29 + 1])
        tf.matmul(x, large, name="result")
        v1.train.export_meta_graph(
            f"{copy}.meta", saver_def=v1.train.Saver().as_saver_def()
        )
    message = refusal(UserError, copy, "result", tmp_path / "a.pb")
    assert "2.15 GB" in message
    assert "export a SavedModel" in message


def test_an_existing_file_is_kept_or_replaced(mlp, tmp_path):
    path = tmp_path / "a.pb"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match="add --overwrite"):
        freeze_checkpoint(mlp, OUTPUT, path)
    with pytest.raises(UserError, match="no node"):
        freeze_checkpoint(mlp, "wrong", path, overwrite=True)
    assert path.read_bytes() == b"before"
    freeze_checkpoint(mlp, OUTPUT, path, overwrite=True)
    assert_same(mlp, path, [f"{OUTPUT}:0"], X)
    assert os.listdir(tmp_path) == ["a.pb"]
    # Always the same bytes, and for all to read as any new file.
    freeze_checkpoint(mlp, OUTPUT, tmp_path / "b.pb")
    assert path.read_bytes() == (tmp_path / "b.pb").read_bytes()
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_impossible_output_paths(mlp, tmp_path):
    message = refusal(UserError, mlp, OUTPUT, tmp_path / "missing" / "a.pb")
    assert "No such file or directory" in message
    with pytest.raises(UserError, match="is a directory"):
        freeze_checkpoint(mlp, OUTPUT, tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    message = refusal(UserError, mlp, OUTPUT, tmp_path / "file" / "a.pb")
    assert "Not a directory" in message


# In a shell.
FREEZE = f"{shlex.quote(sys.executable)} -m bert_export freeze"


def in_mount(tmp_path, options, script):
    """Runs a shell script in a mount of tmpfs at ./mount, which others do not see."""
    (tmp_path / "mount").mkdir()
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path / "mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run(probe, capture_output=True).returncode
    ):
        pytest.skip("mounting a tmpfs needs unshare and the right to use it")
    mounted = f"mount -t tmpfs -o {options} none mount && {script}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def test_a_full_disk_leaves_what_was_there(tmp_path):
    build = functools.partial(tf1_graphs.mlp, inner=4000)
    checkpoint = tf1_graphs.save(tmp_path / "large", build)
    result = in_mount(
        tmp_path,
        "size=64k",
        "echo before > mount/a.pb; "
        f"{FREEZE} --checkpoint={checkpoint} "
        f"--output_node_names={OUTPUT} --output_graph=mount/a.pb --overwrite; "
        "echo exit $?; ls -A mount; cat mount/a.pb",
    )
    assert result.stdout.splitlines() == ["exit 1", "a.pb", "before"], result.stderr
    assert result.stderr.startswith(
        "bert-export: freeze: cannot write mount/a.pb: No space left on device"
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_directory_that_cannot_be_written(mlp, tmp_path):
    result = in_mount(
        tmp_path,
        "ro",
        f"{FREEZE} --checkpoint={mlp} "
        f"--output_node_names={OUTPUT} --output_graph=mount/a.pb; echo exit $?",
    )
    assert result.stdout == "exit 2\n"
    assert "cannot write in mount (Read-only file system)" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_command(mlp, tmp_path):
    path = tmp_path / "a.pb"
    arguments = (
        "freeze",
        f"--checkpoint={mlp}",
        f"--output_node_names={OUTPUT}:0",
        f"--output_graph={path}",
    )
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"output  {OUTPUT}" in result.stdout
    assert "same numbers as the checkpoint" in result.stdout
    assert_same(mlp, path, [f"{OUTPUT}:0"], X)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--checkpoint=a", "--output_node_names=b"),
        ("--checkpoint=a", "--output_graph=b"),
        ("--output_node_names=b", "--output_graph=b"),
    ],
)
def test_missing_flags(arguments):
    message = refused("freeze", *arguments)
    assert message.startswith("freeze: --checkpoint=PREFIX --output_node_names=")
