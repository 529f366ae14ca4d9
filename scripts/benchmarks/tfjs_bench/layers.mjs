/**
 * @fileoverview The layers of the linker that tfjs-layers lacks, as keras_models.py has
 * them.
 */

/**
 * Makes them known to `tf.loadLayersModel`.
 *
 * @param {object} tf TensorFlow.js.
 */
export function registerLayers(tf) {
  /**
   * Softmax attention with several heads and an additive mask.
   *
   * tfjs-layers has a MultiHeadAttention, but it takes its keys and mask as keyword
   * arguments, which a model's executor does not pass on; and it is made of einsum,
   * which the WASM backend has no kernel for.
   */
  class Attention extends tf.layers.Layer {
    static className = 'Attention';

    constructor(config) {
      super(config);
      this.heads = config.heads;
    }

    computeOutputShape(shapes) {
      return shapes[0];
    }

    call([query, key, value, mask]) {
      return tf.tidy(() => {
        const [batch, length, hidden] = query.shape;
        const size = hidden / this.heads;
        const split = (x) =>
          x.reshape([batch, length, this.heads, size]).transpose([0, 2, 1, 3]);
        const scaled = split(query).mul(size ** -0.5);
        const scores = tf.matMul(scaled, split(key), false, true);
        const shares = scores.add(mask.reshape([batch, 1, 1, length])).softmax();
        const context = tf.matMul(shares, split(value));
        return context.transpose([0, 2, 1, 3]).reshape([batch, length, hidden]);
      });
    }

    getConfig() {
      return {...super.getConfig(), heads: this.heads};
    }
  }

  /** The states at [CLS] and at given positions, side by side. */
  class ReadPositions extends tf.layers.Layer {
    static className = 'ReadPositions';

    computeOutputShape([states, ...positions]) {
      return [states[0], (1 + positions.length) * states[2]];
    }

    call([states, ...positions]) {
      return tf.tidy(() => {
        const [batch, length, hidden] = states.shape;
        const numbers = tf.range(0, batch, 1, 'int32').reshape([batch, 1]);
        const rows = numbers.mul(tf.scalar(length, 'int32'));
        const places = tf.concat([rows, ...positions.map((at) => rows.add(at))], 1);
        const read = states.reshape([-1, hidden]).gather(places.reshape([-1]));
        return read.reshape([batch, (1 + positions.length) * hidden]);
      });
    }
  }

  /**
   * Embeddings of the positions 0, 1, 2, ...
   *
   * The sources of tfjs-layers have a layer of this name, but none of the published
   * bundles has it.
   */
  class PositionEmbedding extends tf.layers.Layer {
    static className = 'PositionEmbedding';

    constructor(config) {
      super(config);
      this.sequenceLength = config.sequenceLength;
    }

    build(shape) {
      this.embeddings = this.addWeight(
        'embeddings',
        [this.sequenceLength, shape[2]],
        'float32',
        tf.initializers.zeros(),
      );
      super.build(shape);
    }

    computeOutputShape(shape) {
      return shape;
    }

    call(inputs) {
      return tf.tidy(() => {
        const {shape} = Array.isArray(inputs) ? inputs[0] : inputs;
        const [, length, hidden] = shape;
        const first = this.embeddings.read().slice([0, 0], [length, hidden]);
        return first.broadcastTo(shape);
      });
    }

    getConfig() {
      return {...super.getConfig(), sequenceLength: this.sequenceLength};
    }
  }

  for (const layer of [Attention, ReadPositions, PositionEmbedding]) {
    tf.serialization.registerClass(layer);
  }
}
