"""Correct models around their losses: latent variables, policies, targets, rankings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal, uniform

from .architectures import dense_params, mlp
from .cases import ModelList

MODELS = ModelList()


@MODELS.add
def variational_autoencoder(rng):
    """The VAE example of flax, in small."""

    class VAE(nn.Module):
        @nn.compact
        def __call__(self, x, key):
            h = nn.relu(nn.Dense(6)(x))
            mean, log_variance = nn.Dense(2)(h), nn.Dense(2)(h)
            noise = jax.random.normal(key, mean.shape, mean.dtype)
            z = mean + jnp.exp(0.5 * log_variance) * noise
            return nn.Dense(4)(nn.relu(nn.Dense(6)(z))), mean, log_variance

    net = VAE()
    x = uniform(rng, 0, 1, 3, 4)
    key = jax.random.key(4)

    def loss(params, x, key):
        logits, mean, log_variance = net.apply(params, x, key)
        fit = optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)
        kl = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), -1)
        return jnp.mean(fit + kl)

    return Program(loss, net.init(jax.random.key(0), x, key), (x, key))


@MODELS.add
def ppo_actor_critic(rng):
    """The PPO example of flax: a clipped ratio, a value loss and an entropy bonus."""

    def loss(params, states, actions, old, advantages, returns):
        h = nn.relu(states @ params["torso"])
        log_probs = jax.nn.log_softmax(h @ params["actor"])
        values = (h @ params["critic"])[:, 0]
        chosen = jnp.take_along_axis(log_probs, actions[:, None], 1)[:, 0]
        ratio = jnp.exp(chosen - old)
        clipped = jnp.clip(ratio, 0.8, 1.2) * advantages
        actor = -jnp.mean(jnp.minimum(ratio * advantages, clipped))
        entropy = -jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, -1))
        return actor + 0.5 * jnp.mean((returns - values) ** 2) - 0.01 * entropy

    params = {
        "torso": normal(rng, 3, 5),
        "actor": normal(rng, 5, 3),
        "critic": normal(rng, 5, 1),
    }
    args = (normal(rng, 6, 3), integers(rng, 3, (6,)), -uniform(rng, 0.5, 2, 6))
    return Program(loss, params, (*args, normal(rng, 6), normal(rng, 6)))


@MODELS.add
def double_q_learning(rng):
    """The action by argmax; stop_gradient holds the target."""

    def loss(params, states, actions, rewards, following):
        q = mlp(params["online"], states, jax.nn.relu)
        best = jnp.argmax(mlp(params["online"], following, jax.nn.relu), -1)
        future = mlp(params["target"], following, jax.nn.relu)
        future = jnp.take_along_axis(future, best[:, None], 1)[:, 0]
        target = lax.stop_gradient(rewards + 0.9 * future)
        chosen = jnp.take_along_axis(q, actions[:, None], 1)[:, 0]
        return optax.huber_loss(chosen, target).mean()

    params = {
        "online": dense_params(rng, 3, 5, 3),
        "target": dense_params(rng, 3, 5, 3),
    }
    args = (normal(rng, 5, 3), integers(rng, 3, (5,)), normal(rng, 5))
    return Program(loss, params, (*args, normal(rng, 5, 3)))


@MODELS.add
def self_distillation_with_an_ema_teacher(rng):
    """The teacher sees no gradient; its logits are centered and sharpened."""

    def loss(student, teacher, one, two):
        targets = jax.nn.softmax(mlp(teacher, two, jax.nn.gelu) / 0.5)
        logits = mlp(student, one, jax.nn.gelu)
        return optax.softmax_cross_entropy(logits, lax.stop_gradient(targets)).mean()

    student, teacher = dense_params(rng, 3, 5, 4), dense_params(rng, 3, 5, 4)
    return Program(loss, student, (teacher, normal(rng, 4, 3), normal(rng, 4, 3)))


@MODELS.add
def siamese_net_with_stop_gradient(rng):
    """SimSiam: each view predicts the other, which is held fixed."""

    def loss(params, one, two):
        def similarity(p, z):
            return optax.cosine_similarity(p, lax.stop_gradient(z)).mean()

        z1, z2 = (mlp(params["encoder"], x, jnp.tanh) for x in (one, two))
        p1, p2 = (mlp(params["predictor"], z, jnp.tanh) for z in (z1, z2))
        return -(similarity(p1, z2) + similarity(p2, z1)) / 2

    params = {
        "encoder": dense_params(rng, 3, 5, 4),
        "predictor": dense_params(rng, 4, 3, 4),
    }
    return Program(loss, params, (normal(rng, 4, 3), normal(rng, 4, 3)))


@MODELS.add
def gumbel_softmax_codes(rng):
    """Soft categorical codes, drawn with a key."""

    def loss(params, x, key):
        logits = mlp(params["encoder"], x, jnp.tanh)
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        codes = jax.nn.softmax((logits + noise) / 0.7)
        return jnp.mean((codes @ params["book"] - x) ** 2)

    params = {"encoder": dense_params(rng, 3, 5, 4), "book": normal(rng, 4, 3)}
    return Program(loss, params, (normal(rng, 5, 3), jax.random.key(8)))


@MODELS.add
def vector_quantization_straight_through(rng):
    """VQ-VAE: the nearest code, passed through by stop_gradient, with both losses."""

    def loss(params, x):
        z = mlp(params["encoder"], x, jnp.tanh)
        distance = jnp.sum((z[:, None] - params["book"]) ** 2, -1)
        code = params["book"][jnp.argmin(distance, -1)]
        through = z + lax.stop_gradient(code - z)
        out = mlp(params["decoder"], through, jnp.tanh)
        commitment = jnp.mean((z - lax.stop_gradient(code)) ** 2)
        codebook = jnp.mean((lax.stop_gradient(z) - code) ** 2)
        return jnp.mean((out - x) ** 2) + codebook + 0.25 * commitment

    params = {
        "encoder": dense_params(rng, 3, 5, 2),
        "decoder": dense_params(rng, 2, 5, 3),
        "book": normal(rng, 4, 2),
    }
    return Program(loss, params, (normal(rng, 5, 3),))


@MODELS.add
def binary_weights_straight_through(rng):
    """Signs forward, identity backward, both by stop_gradient."""

    def loss(params, x, y):
        w = params["w"]
        binary = w + lax.stop_gradient(jnp.sign(w) - w)
        hidden = jnp.clip(x @ binary, -1, 1)
        return jnp.mean((hidden @ params["out"] - y) ** 2)

    params = {"w": normal(rng, 3, 5) / 2, "out": normal(rng, 5, 2)}
    return Program(loss, params, (normal(rng, 4, 3), normal(rng, 4, 2)))


@MODELS.add
def mixture_of_experts_with_top_k(rng):
    """Two of four experts a token, and a loss that balances them."""

    def loss(params, tokens):
        logits = tokens @ params["router"]
        weights, which = lax.top_k(jax.nn.softmax(logits), 2)
        weights = weights / weights.sum(-1, keepdims=True)
        outputs = jax.nn.silu(jnp.einsum("td,edf->tef", tokens, params["experts"]))
        chosen = jnp.take_along_axis(outputs, which[..., None], 1)
        mixed = jnp.sum(weights[..., None] * chosen, 1)
        load = jax.nn.one_hot(which, 4, dtype=tokens.dtype).mean((0, 1))
        importance = jax.nn.softmax(logits).mean(0)
        return jnp.mean(mixed**2) + 0.1 * jnp.sum(load * importance)

    params = {"router": normal(rng, 3, 4), "experts": normal(rng, 4, 3, 3)}
    return Program(loss, params, (normal(rng, 6, 3),))


@MODELS.add
def graph_convolutional_net(rng):
    """A GCN with symmetric normalization by segment_sum."""

    def loss(params, nodes, senders, receivers, labels):
        degree = jnp.zeros(5, nodes.dtype).at[receivers].add(1)
        scale = lax.rsqrt(degree[senders] * degree[receivers])[:, None]

        def convolve(h, w):
            messages = (h @ w)[senders] * scale
            return jax.ops.segment_sum(messages, receivers, 5)

        h = jax.nn.relu(convolve(nodes, params["first"]))
        logits = convolve(h, params["second"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params = {"first": normal(rng, 3, 5), "second": normal(rng, 5, 3)}
    senders = jnp.array([0, 1, 2, 3, 4, 0, 2, 4, 1, 3])
    receivers = jnp.array([0, 1, 2, 3, 4, 1, 0, 2, 4, 2])
    args = (normal(rng, 5, 3), senders, receivers, integers(rng, 3, (5,)))
    return Program(loss, params, args)


@MODELS.add
def contrastive_pairs(rng):
    """CLIP in small, temperature and all."""

    def loss(params, images, texts):
        def unit(x):
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        images, texts = unit(images @ params["image"]), unit(texts @ params["text"])
        scores = images @ texts.T * jnp.exp(params["log_temperature"])
        labels = jnp.arange(len(scores))
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return (entropy(scores, labels) + entropy(scores.T, labels)).mean() / 2

    params = {
        "image": normal(rng, 3, 4),
        "text": normal(rng, 2, 4),
        "log_temperature": jnp.float32(0.7),
    }
    return Program(loss, params, (normal(rng, 5, 3), normal(rng, 5, 2)))


@MODELS.add
def quantile_regression_and_a_trimmed_mean(rng):
    """Pinball losses, sorted, the largest left out."""

    def loss(layers, x, y):
        error = y - mlp(layers, x, jax.nn.relu)
        levels = jnp.array([0.1, 0.5, 0.9], x.dtype)
        pinball = jnp.maximum(levels * error, (levels - 1) * error)
        return jnp.mean(jnp.sort(pinball.sum(-1))[:-1])

    params = dense_params(rng, 3, 5, 3)
    return Program(loss, params, (normal(rng, 6, 3), normal(rng, 6, 1)))


@MODELS.add
def generator_against_a_discriminator(rng):
    """The discriminator's loss, the generator held fixed, with an R1 penalty."""

    def loss(params, generator, real, noise):
        def score(x):
            return mlp(params, x, jax.nn.softplus)[..., 0]

        fake = lax.stop_gradient(mlp(generator, noise, jnp.tanh))
        penalty = jnp.sum(jax.vmap(jax.grad(score))(real) ** 2, -1)
        hinge = jax.nn.softplus(-score(real)) + jax.nn.softplus(score(fake))
        return jnp.mean(hinge + 0.5 * penalty)

    discriminator, generator = dense_params(rng, 3, 5, 1), dense_params(rng, 2, 4, 3)
    return Program(
        loss, discriminator, (generator, normal(rng, 4, 3), normal(rng, 4, 2))
    )


@MODELS.add
def losses_of_optax(rng):
    """A projection, Fenchel-Young, focal, polynomial and others, of the same logits."""

    def loss(layers, x, labels):
        logits = mlp(layers, x, jax.nn.swish)
        hot = jax.nn.one_hot(labels, 4, dtype=x.dtype)
        sparse = jax.vmap(optax.projections.projection_simplex)(logits)
        fenchel = optax.losses.make_fenchel_young_loss(jax.nn.logsumexp)
        return (
            optax.losses.sigmoid_focal_loss(logits, hot).mean()
            + jnp.sum(sparse * hot) / 10
            + fenchel(logits, hot).mean()
            + optax.losses.poly_loss_cross_entropy(logits, hot).mean()
            + optax.losses.log_cosh(logits, hot).mean()
            + optax.losses.kl_divergence(
                jax.nn.log_softmax(logits), (hot + 0.1) / 1.4
            ).mean()
            + optax.losses.squared_error(jnp.tanh(logits), hot).mean()
        )

    params = dense_params(rng, 3, 5, 4)
    return Program(loss, params, (normal(rng, 5, 3), integers(rng, 4, (5,))))


@MODELS.add
def weight_normalized_net_with_layer_norm(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.WeightNorm(nn.Dense(5))(x)
            x = nn.LayerNorm()(nn.elu(x))
            return nn.WeightNorm(nn.Dense(2))(x)

    net = Net()
    x = normal(rng, 4, 3)

    def loss(params, x, y):
        return jnp.mean((net.apply(params, x) - y) ** 2)

    return Program(loss, net.init(jax.random.key(0), x), (x, normal(rng, 4, 2)))
