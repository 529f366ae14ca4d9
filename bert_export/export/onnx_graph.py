"""The linker's serving graph, written in ONNX's operators.

It computes what `modeling` computes, padding-free, in forms that runtimes fuse. For
attention each head's rows are gathered from the packed tokens and back, which a runtime
does with all threads, and without transposing.
"""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bert_export.export.linker_graph import TrainedLinker
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import MASKED, Layer, SelfAttention
from bert_export.modeling.layers import Dense, LayerNorm
from bert_export.modeling.linker import Linker
from bert_export.training.model_fn import PROBABILITIES, SCORE

# The first with LayerNormalization, and the ONNX IR of its release.
OPSET = 17
_IR_VERSION = 8


class _Layout(NamedTuple):
    """Where the tokens of a request are: names of tensors.

    Tokens are numbered row after row of the batch; attention sees them in slots,
    `length` to a row.
    """

    tokens: str  # [tokens, 2] int64: row and position
    positions: str  # [tokens] int64
    slots: str  # [batch, heads, length] int64: places in [tokens * heads], 0 if empty
    mask: str  # [batch, 1, 1, length] float32: what to add to a slot's scores
    contexts: str  # [tokens, heads] int64: places in [batch * heads * length]
    readers: str  # [batch, reads] int64: the tokens whose last states the head reads


def build(model: TrainedLinker) -> Any:
    """The serving graph as an `onnx.ModelProto` in float32, standard operators only.

    Initializers have the names of the checkpoint's variables. Position embeddings
    beyond max_seq_length are left out.
    """
    from onnx import TensorProto, helper

    spec, config = model.spec, model.bert
    with tf.Graph().as_default():
        linker = Linker(config, num_span_fields=len(spec.span_fields))
    graph = _Graph(model.checkpoint)
    layout = _lay_out(graph, model)
    x = _embed(graph, model, linker, layout)
    if linker.encoder.projection is not None:
        x = _dense(graph, x, linker.encoder.projection)
    *layers, last = linker.encoder.layers
    for layer in layers:
        context = _attend(graph, x, None, layer.attention, config, layout)
        x = _finish(graph, x, context, layer)
    # Nobody reads the other tokens' last states.
    places = graph.add("Reshape", layout.readers, graph.ints([-1]))
    readers = graph.add("Gather", x, places)
    context = _attend(graph, x, readers, last.attention, config, layout)
    states = _finish(graph, readers, context, last)
    states = graph.add("Reshape", states, graph.ints([-1, linker.head_inputs]))
    logits = _dense(graph, states, linker.head)
    graph.add("Softmax", logits, output=PROBABILITIES, axis=-1)
    no, yes = (
        graph.add("Gather", logits, graph.constant(np.int64(place)), axis=1)
        for place in (0, 1)
    )
    graph.add("Sub", yes, no, output=SCORE)

    sequence, floats = ["batch", "seq_length"], TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.INT64, sequence[: 1 if name in spec.span_fields else 2]
        )
        for name in model.input_names
    ]
    outputs = [
        helper.make_tensor_value_info(PROBABILITIES, floats, ["batch", 2]),
        helper.make_tensor_value_info(SCORE, floats, ["batch"]),
    ]
    return helper.make_model(
        helper.make_graph(
            graph.nodes, "linker", inputs, outputs, list(graph.initializers.values())
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="bert_export",
    )


class _Graph:
    """Nodes and initializers in the making; tensors are known by their names."""

    def __init__(self, checkpoint: str):
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._reader = tf.train.load_checkpoint(checkpoint)
        self._uses: collections.Counter[str] = collections.Counter()

    def add(
        self, kind: str, *inputs: str, name: str = "", output: str = "", **attrs: Any
    ) -> str:
        """Adds a node, named after `name` or its kind; returns its only output."""
        from onnx import helper

        name = output or name or kind
        self._uses[name] += 1
        # Layers of ALBERT share their weights, and come repeatedly.
        unique = name if self._uses[name] == 1 else f"{name}/{self._uses[name] - 1}"
        self.nodes.append(helper.make_node(kind, inputs, [unique], unique, **attrs))
        return unique

    def store(self, name: str, value: np.ndarray) -> str:
        """The name of an initializer, which is stored once."""
        from onnx import numpy_helper

        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def variable(self, name: str) -> np.ndarray:
        """A variable's trained value."""
        return self._reader.get_tensor(name)

    def stored_variable(self, name: str) -> str:
        """The name of the initializer that holds a variable."""
        return self.store(name, self.variable(name))

    def constant(self, value: np.generic) -> str:
        """The name of a scalar."""
        return self.store(f"constant/{value.dtype}/{value}", np.asarray(value))

    def ints(self, values: list[int]) -> str:
        """The name of an int64 vector, such as a shape."""
        name = "constant/int64/" + "_".join(map(str, values))
        return self.store(f"{name}/vector", np.array(values, np.int64))


def _lay_out(graph: _Graph, model: TrainedLinker) -> _Layout:
    from onnx import TensorProto

    add, spec, heads = graph.add, model.spec, model.bert.num_attention_heads
    zero, one = (graph.constant(np.int64(value)) for value in (0, 1))
    length = add("Gather", add("Shape", spec.input_ids), one)
    positions = add("Range", zero, length, one)  # [seq_length]
    # The [CLS] position counts as real whatever the mask says.
    real = add(
        "Or",
        add("Cast", spec.input_mask, to=TensorProto.BOOL),
        add("Equal", positions, zero),
    )
    places = add("NonZero", real)  # [2, tokens]
    counted = add("Cast", real, to=TensorProto.INT64)  # [batch, seq_length]
    lengths = add("ReduceSum", counted, graph.ints([1]), keepdims=1)  # [batch, 1]
    starts = add("CumSum", lengths, zero, exclusive=1)
    # At least 0: the maximum over an empty batch is the lowest integer.
    longest = add("Max", add("ReduceMax", lengths, keepdims=0), zero)
    slot = add("Range", zero, longest, one)  # [length]
    filled = add("Less", slot, lengths)  # [batch, length]
    slots = add("Where", filled, add("Add", starts, slot), zero)
    mask = add(
        "Where",
        filled,
        graph.constant(np.float32(0)),
        graph.constant(np.float32(MASKED)),
    )
    filled_places = add("NonZero", filled)  # [2, tokens]
    row, place = (  # [tokens, 1] each
        add("Transpose", add("Gather", filled_places, graph.ints([axis])))
        for axis in (0, 1)
    )
    count = graph.constant(np.int64(heads))
    numbers = graph.ints(list(range(heads)))
    first = add("Mul", add("Unsqueeze", slots, graph.ints([1])), count)
    head_slots = add("Add", first, add("Unsqueeze", numbers, graph.ints([1])))
    place_of_head = add("Mul", add("Add", add("Mul", row, count), numbers), longest)
    readers = starts
    if spec.span_fields:
        readers = _readers(graph, model, positions, counted, starts)
    return _Layout(
        tokens=add("Transpose", places),
        positions=add("Gather", places, one),
        slots=head_slots,
        mask=add("Unsqueeze", mask, graph.ints([1, 2])),
        contexts=add("Add", place_of_head, place),
        readers=readers,
    )


def _readers(
    graph: _Graph, model: TrainedLinker, positions: str, counted: str, starts: str
) -> str:
    """The tokens at [CLS] and the span positions, [batch, reads].

    A position that is not a real token's reads [CLS].
    """
    add = graph.add
    one, two = graph.ints([1]), graph.ints([2])
    spans = [add("Unsqueeze", name, one) for name in model.spec.span_fields]
    reads = add("Unsqueeze", add("Concat", *spans, axis=1), two)  # [batch, spans, 1]
    # How many real tokens stand before a real one, [batch, 1, seq_length].
    before = add(
        "Mul",
        add("Sub", add("CumSum", counted, graph.constant(np.int64(1))), one),
        counted,
    )
    read = add(
        "ReduceSum",
        add(
            "Where",
            add("Equal", reads, positions),
            add("Unsqueeze", before, one),
            graph.constant(np.int64(0)),
        ),
        two,
        keepdims=0,
    )
    return add("Concat", starts, add("Add", starts, read), axis=1)


def _embed(graph: _Graph, model: TrainedLinker, linker: Linker, layout: _Layout) -> str:
    """The normalised embeddings, [tokens, embedding_width]."""
    add, embeddings = graph.add, linker.encoder.embeddings
    name = embeddings.position.name.removesuffix(":0")
    rows = graph.variable(name)[: model.spec.max_seq_length]
    found = [add("Gather", graph.store(name, rows), layout.positions)]
    for feature, table in (
        (model.spec.input_ids, embeddings.word),
        (model.spec.segment_ids, embeddings.segment),
    ):
        if table is not None:
            indices = add("GatherND", feature, layout.tokens)
            stored = graph.stored_variable(table.name.removesuffix(":0"))
            found.append(add("Gather", stored, indices))
    summed = add("Add", found[1], found[0])
    for other in found[2:]:
        summed = add("Add", summed, other)
    return _norm(graph, summed, embeddings.norm)


def _attend(
    graph: _Graph,
    x: str,
    readers: str | None,
    attention: SelfAttention,
    config: BertConfig,
    layout: _Layout,
) -> str:
    """Softmax attention of all tokens, or of `readers` only, to the tokens of a row.

    Args:
      graph: what to add to.
      x: [tokens, hidden].
      readers: [batch * reads, hidden], rows of `x`; None: all tokens.
      attention: the layer's part of it.
      config: the model's sizes.
      layout: where the tokens are.

    Returns:
      The contexts, [tokens or batch * reads, hidden].
    """
    add, heads, size = graph.add, config.num_attention_heads, config.head_size
    head_rows = graph.ints([-1, size])

    def gather(dense: Dense) -> str:
        """[batch, heads, length, head_size]."""
        rows = add("Reshape", _dense(graph, x, dense), head_rows)
        return add("Gather", rows, layout.slots)

    if readers is None:
        query = gather(attention.query)
    else:
        shape = add(
            "Concat",
            add("Shape", layout.readers),
            graph.ints([heads, size]),
            axis=0,
        )
        query = _dense(graph, readers, attention.query)
        # A batch may be empty.
        query = add("Reshape", query, shape, allowzero=1)
        query = add("Transpose", query, perm=[0, 2, 1, 3])
    query = add("Mul", query, graph.constant(np.float32(size**-0.5)))
    key, value = gather(attention.key), gather(attention.value)
    scores = add("MatMul", query, add("Transpose", key, perm=[0, 1, 3, 2]))
    weights = add("Softmax", add("Add", scores, layout.mask), axis=-1)
    context = add("MatMul", weights, value)
    if readers is None:
        context = add("Gather", add("Reshape", context, head_rows), layout.contexts)
    else:
        context = add("Transpose", context, perm=[0, 2, 1, 3])
    return add("Reshape", context, graph.ints([-1, config.hidden_size]))


def _finish(graph: _Graph, x: str, context: str, layer: Layer) -> str:
    """What follows attention in a layer, token by token."""
    attended = _dense(graph, context, layer.attention_output)
    x = _norm(graph, graph.add("Add", attended, x), layer.attention_norm)
    inner = _gelu(graph, _dense(graph, x, layer.intermediate), layer.approximate_gelu)
    summed = graph.add("Add", _dense(graph, inner, layer.output), x)
    return _norm(graph, summed, layer.output_norm)


def _dense(graph: _Graph, x: str, dense: Dense) -> str:
    kernel, bias = (
        graph.stored_variable(f"{dense.layer}/{part}") for part in ("kernel", "bias")
    )
    multiplied = graph.add("MatMul", x, kernel, name=dense.layer)
    return graph.add("Add", multiplied, bias, name=dense.layer)


def _norm(graph: _Graph, x: str, norm: LayerNorm) -> str:
    gamma, beta = (
        graph.stored_variable(f"{norm.layer}/{part}") for part in ("gamma", "beta")
    )
    return graph.add(
        "LayerNormalization", x, gamma, beta, name=norm.layer, epsilon=norm.epsilon
    )


def _gelu(graph: _Graph, x: str, approximate: bool) -> str:
    """GELU, spelled as ONNX Runtime recognises it."""

    def scalar(value: float) -> str:
        return graph.constant(np.float32(value))

    add = graph.add
    if approximate:
        cubed = add("Mul", add("Pow", x, scalar(3)), scalar(0.044715))
        inner = add("Mul", add("Add", x, cubed), scalar(np.sqrt(2 / np.pi)))
        shifted = add("Add", add("Tanh", inner), scalar(1))
        return add("Mul", add("Mul", x, scalar(0.5)), shifted)
    shifted = add("Add", add("Erf", add("Div", x, scalar(np.sqrt(2)))), scalar(1))
    return add("Mul", add("Mul", x, shifted), scalar(0.5))
