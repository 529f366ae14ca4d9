"""Operations that TensorFlow.js lacks are found and named with their layer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

pytest.importorskip("tensorflowjs", reason="pip install 'bert_export[tfjs]'")

from bert_export.errors import StageError
from bert_export.export import tfjs_operations


def _layers() -> tf.compat.v1.GraphDef:
    """Six layers, of which each sums segments, and a loop with another operation."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def model(values: tf.Tensor) -> tf.Tensor:
        for layer in range(6):
            with tf.name_scope(f"bert/encoder/layer_{layer}/attention"):
                rows = tf.range(tf.shape(values)[0])
                values = tf.math.segment_sum(values, rows)
        for _ in tf.range(3):
            with tf.name_scope("gamma"):
                values += tf.math.lgamma(values)
        return values

    return model.get_concrete_function().graph.as_graph_def()


def test_unsupported_has_every_node():
    found = tfjs_operations.unsupported(_layers())
    assert list(found) == ["Lgamma", "SegmentSum"]
    assert found["SegmentSum"] == [
        f"bert/encoder/layer_{layer}/attention/SegmentSum" for layer in range(6)
    ]
    # In the loop's body, which is a function of the library.
    (name,) = found["Lgamma"]
    assert name.startswith("while/gamma/Lgamma (function while_body")


def test_check_names_operations_and_layers():
    with pytest.raises(StageError) as raised:
        tfjs_operations.check(_layers())
    message = str(raised.value)
    assert "does not have 2 operations" in message
    assert (
        "SegmentSum (bert/encoder/layer_0/attention, bert/encoder/layer_1/attention, "
        "bert/encoder/layer_2/attention and 3 more)" in message
    )
    assert "Lgamma (while/gamma, function while_body" in message


def test_check_takes_what_the_converter_takes():
    """Constants, fed and fused operations; and debugging operations go."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def model(values: tf.Tensor) -> tf.Tensor:
        values = tf.debugging.assert_all_finite(values, "not finite")
        tf.debugging.assert_equal(tf.shape(values)[1], 3)
        return tf.nn.softmax(tf.matmul(values, tf.ones([3, 2])) + 1.0)

    graph_def = model.get_concrete_function().graph.as_graph_def()
    assert "CheckNumerics" in {node.op for node in graph_def.node}
    tfjs_operations.check(graph_def)
    assert not tfjs_operations.unsupported(graph_def)


def test_variables_and_calls_do_not_count():
    weight = tf.Variable(1.0)
    inner = tf.function(lambda values: values * weight)

    @tf.function(input_signature=[tf.TensorSpec([None])])
    def model(values: tf.Tensor) -> tf.Tensor:
        return inner(values) + weight

    graph_def = model.get_concrete_function().graph.as_graph_def()
    operations = {node.op for node in graph_def.node}
    assert {"StatefulPartitionedCall", "ReadVariableOp"} <= operations
    assert not tfjs_operations.unsupported(graph_def)


def test_node_without_a_scope_is_named_itself():
    found = {"Lgamma": ["Lgamma_2"], "Rint": ["StatefulPartitionedCall/a/b/Rint"]}
    assert tfjs_operations.describe(found) == "Lgamma (Lgamma_2), Rint (a/b)"


def test_empty_graph_is_fine():
    tfjs_operations.check(tf.compat.v1.GraphDef())


def test_list_is_the_converters_own():
    from tensorflowjs import resource_loader

    with resource_loader.open_file("op_list/control.json") as file:
        control = {operation["tfOpName"] for operation in json.load(file)}
    assert control < tfjs_operations.supported()


def test_list_is_read_without_importing_the_converter():
    program = (
        "import sys\n"
        "from bert_export.export import tfjs_operations\n"
        "assert 'MatMul' in tfjs_operations.supported()\n"
        "assert 'tensorflowjs' not in sys.modules\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
