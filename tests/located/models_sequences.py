"""Correct models of sequences: recurrent nets, transformers, state spaces."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal, uniform

from .architectures import Parts, language_model, recurrent
from .cases import ModelList
from .faults_recurrent import lstm_cell

MODELS = ModelList()


@MODELS.add
def transformer_scanned_over_layers(rng):
    """The transformer of the faults, with nothing planted in it."""
    return language_model(rng, Parts())


@MODELS.add
def lstm_of_plain_jax(rng):
    """The recurrent net of the faults, with autodiff's own derivative."""
    return recurrent(lstm_cell, 4)(rng)


@MODELS.add
def flax_language_model_with_a_causal_mask(rng):
    """The decoder of flax's LM1B example, in small; padding has no weight."""

    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(6, 4)
            x = embed(tokens)
            x = x + self.param("positions", nn.initializers.normal(0.5), (1, 5, 4))
            mask = nn.combine_masks(
                nn.make_causal_mask(tokens),
                nn.make_attention_mask(tokens > 0, tokens > 0),
            )
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, mask=mask)
            x = x + nn.Dense(4)(nn.relu(nn.Dense(6)(nn.LayerNorm()(x))))
            return embed.attend(nn.LayerNorm()(x))

    net = Decoder()
    tokens = integers(rng, 5, (2, 5)).at[:, :4].add(1).at[1, 4].set(0)
    params = net.init(jax.random.key(0), tokens)

    def loss(params, tokens):
        logits = net.apply(params, tokens)[:, :-1]
        targets = tokens[:, 1:]
        weights = (targets > 0).astype(logits.dtype)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(losses * weights) / jnp.sum(weights)

    return Program(loss, params, (tokens,))


@MODELS.add
def encoder_decoder_for_translation(rng):
    """Attention across two sequences and smoothed labels, as flax's WMT example."""

    class Block(nn.Module):
        causal: bool = False

        @nn.compact
        def __call__(self, x, memory=None):
            mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
            x = nn.LayerNorm()(
                x + nn.MultiHeadDotProductAttention(num_heads=2)(x, mask=mask)
            )
            if memory is not None:
                x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x, memory)
            return x + nn.Dense(4)(nn.relu(nn.Dense(5)(x)))

    class Translator(nn.Module):
        @nn.compact
        def __call__(self, source, target):
            embed = nn.Embed(5, 4)
            memory = Block()(embed(source))
            return nn.Dense(5)(Block(causal=True)(embed(target), memory))

    net = Translator()
    source, target = integers(rng, 5, (2, 4)), integers(rng, 5, (2, 3))
    params = net.init(jax.random.key(0), source, target)

    def loss(params, source, target):
        logits = net.apply(params, source, target)[:, :-1]
        labels = optax.smooth_labels(jax.nn.one_hot(target[:, 1:], 5), 0.1)
        return optax.softmax_cross_entropy(logits, labels).mean()

    return Program(loss, params, (source, target))


@MODELS.add
def sequence_to_sequence_lstm(rng):
    """The seq2seq example of flax: the encoder's last carry starts the decoder."""

    class Seq2Seq(nn.Module):
        @nn.compact
        def __call__(self, source, target):
            carry, _ = nn.RNN(nn.LSTMCell(4), return_carry=True)(source)
            out = nn.RNN(nn.LSTMCell(4))(target, initial_carry=carry)
            return nn.Dense(3)(out)

    net = Seq2Seq()
    source, target = normal(rng, 2, 4, 3), jnp.eye(3)[integers(rng, 3, (2, 4))]
    params = net.init(jax.random.key(0), source, target)

    def loss(params, source, target):
        logits = net.apply(params, source, target[:, :-1])
        return optax.softmax_cross_entropy(logits, target[:, 1:]).mean()

    return Program(loss, params, (source, target))


@MODELS.add
def masked_recurrent_net(rng):
    """Sequences of different lengths: past its end a state stays as it is."""

    def loss(params, xs, lengths):
        def step(h, inputs):
            x, t = inputs
            new = jnp.tanh(x @ params["in"] + h @ params["loop"])
            return jnp.where((t < lengths)[:, None], new, h), None

        start = jnp.zeros((len(lengths), 3), xs.dtype)
        h, _ = lax.scan(step, start, (xs, jnp.arange(len(xs))))
        return jnp.mean(h**2)

    params = {"in": normal(rng, 2, 3), "loop": normal(rng, 3, 3)}
    return Program(loss, params, (normal(rng, 5, 3, 2), jnp.array([2, 5, 3])))


@MODELS.add
def nnx_gru(rng):
    class Tagger(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.GRUCell(2, 4, rngs=rngs))
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, xs):
            return self.head(self.rnn(xs))

    def loss(net, xs, tags):
        return optax.softmax_cross_entropy_with_integer_labels(net(xs), tags).mean()

    return Program(
        loss, Tagger(nnx.Rngs(0)), (normal(rng, 2, 4, 2), integers(rng, 3, (2, 4)))
    )


@MODELS.add
def haiku_deep_lstm(rng):
    def forward(xs):
        core = hk.DeepRNN([hk.LSTM(3), jax.nn.relu, hk.Linear(2)])
        return hk.dynamic_unroll(core, xs, core.initial_state(2))[0]

    net = hk.without_apply_rng(hk.transform(forward))
    xs = normal(rng, 4, 2, 3)

    def loss(params, xs):
        return jnp.mean(optax.huber_loss(net.apply(params, xs)))

    return Program(loss, net.init(jax.random.key(0), xs), (xs,))


@MODELS.add
def speech_by_ctc(rng):
    """Alignments summed over by optax's connectionist temporal classification."""

    def loss(params, x, labels):
        logits = jnp.tanh(x @ params["in"]) @ params["out"]
        no_padding = jnp.zeros(x.shape[:2], x.dtype)
        label_paddings = jnp.zeros(labels.shape, x.dtype)
        return optax.ctc_loss(logits, no_padding, labels, label_paddings).mean()

    params = {"in": normal(rng, 3, 4), "out": normal(rng, 4, 4)}
    labels = jnp.array([[1, 2], [3, 1]])
    return Program(loss, params, (normal(rng, 2, 5, 3), labels))


@MODELS.add
def conditional_random_field(rng):
    """The forward algorithm: logsumexp in a scan."""

    def loss(params, x, tags):
        unary = x @ params["emit"]

        def step(alpha, scores):
            joint = alpha[:, None] + params["move"]
            return jax.nn.logsumexp(joint, 0) + scores, None

        alpha, _ = lax.scan(step, unary[0], unary[1:])
        path = jnp.sum(jnp.take_along_axis(unary, tags[:, None], 1))
        path = path + jnp.sum(params["move"][tags[:-1], tags[1:]])
        return jax.nn.logsumexp(alpha) - path

    params = {"emit": normal(rng, 2, 3), "move": normal(rng, 3, 3)}
    return Program(loss, params, (normal(rng, 6, 2), integers(rng, 3, (6,))))


@MODELS.add
def state_space_model(rng):
    """A gated linear recurrence by associative_scan."""

    def loss(params, xs):
        decay = jax.nn.sigmoid(xs @ params["gate"])
        drive = (1 - decay) * (xs @ params["in"])

        def join(left, right):
            return left[0] * right[0], left[1] * right[0] + right[1]

        _, h = lax.associative_scan(join, (decay, drive))
        return jnp.mean((jax.nn.silu(h) @ params["out"]) ** 2)

    params = {
        "gate": normal(rng, 2, 3),
        "in": normal(rng, 2, 3),
        "out": normal(rng, 3, 2),
    }
    return Program(loss, params, (normal(rng, 6, 2),))


@MODELS.add
def rematerialized_recurrence(rng):
    """A remat of segments of steps, with a saving policy."""

    def loss(params, xs):
        def step(h, x):
            return jnp.tanh(x @ params["in"] + h @ params["loop"]), None

        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

        def segment(h, xs):
            return lax.scan(step, h, xs)

        segment = jax.checkpoint(segment, policy=policy)
        h, _ = lax.scan(segment, jnp.zeros(3, xs.dtype), xs)
        return jnp.sum(h**2)

    params = {"in": normal(rng, 2, 3), "loop": normal(rng, 3, 3)}
    return Program(loss, params, (normal(rng, 2, 3, 2),))


@MODELS.add
def neural_ode_by_scan(rng):
    """Runge-Kutta steps of a vector field, and its regularization."""

    def loss(params, start, target):
        def field(x):
            return jnp.tanh(params["w"] @ x + params["b"])

        def step(x, _):
            h = 0.2
            k1 = field(x)
            k2 = field(x + h / 2 * k1)
            k3 = field(x + h / 2 * k2)
            k4 = field(x + h * k3)
            return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), jnp.sum(k1**2)

        end, kinetic = lax.scan(step, start, None, length=5)
        return jnp.sum((end - target) ** 2) + 0.01 * jnp.sum(kinetic)

    params = {"w": normal(rng, 3, 3), "b": normal(rng, 3)}
    return Program(loss, params, (normal(rng, 3), normal(rng, 3)))


@MODELS.add
def attention_with_a_stable_softmax_by_hand(rng):
    """The shift by a maximum under stop_gradient changes nothing."""

    def loss(params, x):
        q, k, v = (x @ params[name] for name in "qkv")
        scores = q @ k.T
        scores = scores - lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp(scores)
        out = weights @ v / weights.sum(-1, keepdims=True)
        return jnp.mean((out - params["bias"]) ** 2)

    params = {name: normal(rng, 3, 3) for name in "qkv"}
    params["bias"] = uniform(rng, -1, 1, 3)
    return Program(loss, params, (normal(rng, 4, 3),))
