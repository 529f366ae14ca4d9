"""Mixed precision: the session config that computes in bfloat16."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.protobuf import rewriter_config_pb2


def bfloat16_session_config() -> tf.compat.v1.ConfigProto:
    """A session config that computes matmuls and what surrounds them in bfloat16.

    The graph keeps its float32 types; grappler's `auto_mixed_precision_onednn_bfloat16`
    rewrites what runs. Variables, norms' sums and the optimizer stay float32. Faster
    where the CPU has bfloat16 instructions (avx512_bf16, amx_bf16).
    """
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = (
        rewriter_config_pb2.RewriterConfig.ON
    )
    return config
