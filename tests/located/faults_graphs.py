"""Faults on graphs, between experts, and in losses over pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal

from .cases import FaultList, culprit
from .rules import ruled, softmax_backward

FAULTS = FaultList()


# ---- message passing


SENDERS = (0, 1, 2, 3, 4, 0, 2, 4, 1)
RECEIVERS = (1, 2, 3, 4, 0, 2, 0, 1, 4)


def graph_loss(rng, passing):
    """Two rounds of message passing between five nodes, and a readout."""

    def loss(params, nodes, senders, receivers):
        for w in (params["first"], params["second"]):
            nodes = jnp.tanh(passing(nodes @ w, senders, receivers))
        return jnp.mean((nodes.sum(0) @ params["readout"]) ** 2)

    params = {
        "first": normal(rng, 3, 4),
        "second": normal(rng, 4, 4),
        "readout": normal(rng, 4, 2),
    }
    return Program(
        loss, params, (normal(rng, 5, 3), jnp.array(SENDERS), jnp.array(RECEIVERS))
    )


@FAULTS.add(culprit("aggregate", "mean of neighbors"))
def graph_mean_not_divided_by_the_degree(rng, faulty):
    def aggregate(messages, receivers):
        total = jax.ops.segment_sum(messages, receivers, 5)
        degree = jnp.zeros(5, messages.dtype).at[receivers].add(1)
        return total / degree[:, None]

    def aggregate_backward(saved, ct):
        (_, receivers), _ = saved
        degree = jnp.zeros(5, ct.dtype).at[receivers].add(1)
        return (ct if faulty else ct / degree[:, None])[receivers], None

    mean = ruled(aggregate, aggregate_backward)

    def passing(nodes, senders, receivers):
        messages = nodes[senders]
        return nodes + mean(messages, receivers)  # rule: mean of neighbors

    return graph_loss(rng, passing)


@FAULTS.add(culprit("gather", "gather of senders"))
def graph_gather_keeps_one_edge_per_node(rng, faulty):
    """A node that sends along two edges gets the gradient of one."""

    def gather(nodes, senders):
        return nodes[senders]

    def gather_backward(saved, ct):
        (nodes, senders), _ = saved
        rows = jnp.zeros_like(nodes).at[senders]
        return rows.set(ct) if faulty else rows.add(ct), None

    gathered = ruled(gather, gather_backward)

    def passing(nodes, senders, receivers):
        messages = gathered(nodes, senders)  # rule: gather of senders
        return jax.ops.segment_sum(jax.nn.elu(messages), receivers, 5)

    return graph_loss(rng, passing)


@FAULTS.add(culprit("edge_softmax", "graph attention"))
def graph_attention_over_the_wrong_axis(rng, faulty):
    """Attention to neighbors is normalized over columns, and pulled back over rows."""

    def edge_softmax(scores):
        return jax.nn.softmax(scores, axis=-1)

    def edge_softmax_backward(saved, ct):
        _, weights = saved
        return (softmax_backward(weights, ct, 0 if faulty else -1),)

    softmax = ruled(edge_softmax, edge_softmax_backward)

    def loss(params, nodes, adjacency):
        h = nodes @ params["w"]
        scores = jax.nn.leaky_relu((h @ params["a"])[:, None] + h @ params["b"], 0.2)
        scores = jnp.where(adjacency, scores, -1e9)
        weights = softmax(scores)  # rule: graph attention
        return jnp.mean(jax.nn.elu(weights @ h) ** 2)

    params = {"w": normal(rng, 3, 4), "a": normal(rng, 4), "b": normal(rng, 4)}
    adjacency = jnp.eye(5, dtype=bool).at[jnp.array(RECEIVERS), jnp.array(SENDERS)]
    return Program(loss, params, (normal(rng, 5, 3), adjacency.set(True)))


# ---- mixtures of experts


def expert_loss(rng, route):
    """Tokens go one by one, in a scan, through the expert that ``route`` calls."""

    def loss(params, tokens, which):
        def step(total, inputs):
            token, expert = inputs
            out = route(params["experts"], token, expert)
            gate = jax.nn.softmax(params["router"] @ token)[expert]
            return total + jnp.sum((gate * out) ** 2), None

        return lax.scan(step, jnp.zeros((), tokens.dtype), (tokens, which))[0]

    params = {"experts": normal(rng, 3, 4, 4), "router": normal(rng, 3, 4)}
    return Program(loss, params, (normal(rng, 6, 4), jnp.array([0, 1, 2, 1, 0, 2])))


@FAULTS.add(culprit("glu", "expert of a switch", (2,), (5,)))
def one_expert_of_a_switch_swaps_value_and_gate(rng, faulty):
    """Only tokens 2 and 5 are sent to the expert whose rule is wrong."""

    def glu(x):
        value, gate = jnp.split(x, 2)
        return value * jax.nn.sigmoid(gate)

    def glu_backward(saved, ct):
        value, gate = jnp.split(saved[0][0], 2)
        s = jax.nn.sigmoid(gate)
        halves = (ct * s, ct * value * s * (1 - s))
        return (jnp.concatenate(halves[::-1] if faulty else halves),)

    gated = ruled(glu, glu_backward)

    def linear_expert(w, token):
        return (w[0] @ token)[:2]

    def tanh_expert(w, token):
        return jnp.tanh(w[1] @ token)[2:]

    def gated_expert(w, token):
        return gated(w[2] @ token)  # rule: expert of a switch

    def route(experts, token, expert):
        branches = (linear_expert, tanh_expert, gated_expert)
        return lax.switch(expert, branches, experts, token)

    return expert_loss(rng, route)


@FAULTS.add(culprit("project", "expert of a cond", (2,), (5,)))
def expert_of_a_cond_loses_its_kernel(rng, faulty):
    """One branch's rule gives its kernel nothing; tokens 2 and 5 take that branch."""

    def project(w, x):
        return w @ x

    def project_backward(saved, ct):
        (w, x), _ = saved
        return jnp.zeros_like(w) if faulty else jnp.outer(ct, x), w.T @ ct

    projected = ruled(project, project_backward)

    def shared(experts, token):
        return jnp.sin(experts[0] @ token)

    def special(experts, token):
        return projected(experts[2], token)  # rule: expert of a cond

    def route(experts, token, expert):
        return lax.cond(expert == 2, special, shared, experts, token)

    return expert_loss(rng, route)


@FAULTS.add(culprit("route_weights", "top-k gate"))
def top_k_gate_renormalized_without_its_derivative(rng, faulty):
    """The weights of the chosen are divided by their sum; the rule forgets it."""

    def route_weights(logits):
        chosen, _ = lax.top_k(jax.nn.softmax(logits), 2)
        return chosen / jnp.sum(chosen)

    def route_weights_backward(saved, ct):
        (logits,), weights = saved
        _, where = lax.top_k(logits, 2)
        back = weights * ct if faulty else softmax_backward(weights, ct)
        return (jnp.zeros_like(logits).at[where].set(back),)

    gates = ruled(route_weights, route_weights_backward)

    def loss(params, tokens):
        def mixed(token):
            logits = params["router"] @ token
            outputs = jnp.tanh(params["experts"] @ token)
            _, where = lax.top_k(logits, 2)
            return gates(logits) @ outputs[where]  # rule: top-k gate

        return jnp.mean(jax.vmap(mixed)(tokens) ** 2)

    params = {"experts": normal(rng, 4, 3, 3), "router": normal(rng, 4, 3)}
    return Program(loss, params, (normal(rng, 5, 3),))


# ---- pairs


@FAULTS.add(culprit("info_nce", "contrastive loss"))
def contrastive_loss_pulls_one_way(rng, faulty):
    """The loss is symmetric in its two views; the rule normalizes over one."""

    def info_nce(scores):
        both = jax.nn.log_softmax(scores, 0) + jax.nn.log_softmax(scores, 1)
        return -jnp.mean(jnp.diagonal(both)) / 2

    def info_nce_backward(saved, ct):
        (scores,), _ = saved
        rows, columns = jax.nn.softmax(scores, 1), jax.nn.softmax(scores, 0)
        both = 2 * rows if faulty else rows + columns
        target = jnp.eye(len(scores), dtype=ct.dtype)
        return (ct * (both / 2 - target) / len(scores),)

    contrast = ruled(info_nce, info_nce_backward)

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def loss(params, images, texts):
        images, texts = unit(images @ params["image"]), unit(texts @ params["text"])
        scores = images @ texts.T * jnp.exp(params["log_temperature"])
        return contrast(scores)  # rule: contrastive loss

    params = {
        "image": normal(rng, 3, 4),
        "text": normal(rng, 2, 4),
        "log_temperature": jnp.float32(0.7),
    }
    return Program(loss, params, (normal(rng, 5, 3), normal(rng, 5, 2)))


@FAULTS.add(culprit("unit", "unit vectors"), culprit("margin_loss", "triplet loss"))
def triplet_loss_with_two_faults(rng, faulty):
    """The unit vectors forget the projection; the margin forgets the negative."""

    def unit(x):
        return x / jnp.sqrt(jnp.sum(x * x))

    def unit_backward(saved, ct):
        (x,), u = saved
        ct = ct if faulty else ct - u * jnp.sum(u * ct)
        return (ct / jnp.linalg.norm(x),)

    def margin_loss(positive, negative):
        return jax.nn.softplus(0.5 + positive - negative)

    def margin_loss_backward(saved, ct):
        (positive, negative), _ = saved
        slope = ct * jax.nn.sigmoid(0.5 + positive - negative)
        return slope, jnp.zeros_like(slope) if faulty else -slope

    direction = ruled(unit, unit_backward)
    margin = ruled(margin_loss, margin_loss_backward)

    def loss(params, triplets):
        def embed(x):
            hidden = jnp.tanh(params["in"] @ x)
            return direction(params["out"] @ hidden)  # rule: unit vectors

        anchor, good, bad = jax.vmap(jax.vmap(embed))(triplets)
        near, far = jnp.sum((anchor - good) ** 2, -1), jnp.sum((anchor - bad) ** 2, -1)
        return jnp.mean(margin(near, far))  # rule: triplet loss

    params = {"in": normal(rng, 4, 3), "out": normal(rng, 3, 4)}
    return Program(loss, params, (normal(rng, 3, 4, 3),))


@FAULTS.add(culprit("transport", "vmapped transport"))
def optimal_transport_returns_one_potential_for_both(rng, faulty):
    """Entropic transport by Sinkhorn, its derivative the two potentials."""
    strength, steps = 0.5, 60

    def potentials(cost):
        size = jnp.log(jnp.asarray(len(cost), cost.dtype))

        def update(_, fg):
            f, g = fg
            f = -strength * (jax.nn.logsumexp((g - cost) / strength, 1) - size)
            g = -strength * (jax.nn.logsumexp((f[:, None] - cost) / strength, 0) - size)
            return f, g

        zero = jnp.zeros(len(cost), cost.dtype)
        return lax.fori_loop(0, steps, update, (zero, zero))

    def transport(cost):
        f, g = potentials(cost)
        return jnp.mean(f) + jnp.mean(g)

    def transport_backward(saved, ct):
        (cost,), _ = saved
        f, g = potentials(cost)
        f = g if faulty else f
        plan = jnp.exp((f[:, None] + g - cost) / strength) / len(cost) ** 2
        return (ct * plan,)

    distance = ruled(transport, transport_backward)

    def loss(params, x, y):
        moved = jnp.tanh(x @ params["w"])
        cost = jnp.sum((moved[:, :, None] - y[:, None]) ** 2, -1)
        return jnp.sum(jax.vmap(distance)(cost))  # rule: vmapped transport

    return Program(
        loss, {"w": normal(rng, 2, 2)}, (normal(rng, 2, 4, 2), normal(rng, 2, 4, 2))
    )


@FAULTS.add(culprit("policy_gradient", "policy loss"))
def policy_gradient_of_the_wrong_action(rng, faulty):
    """The surrogate of an actor-critic: the rule scores action 0 whatever was done."""

    def policy_gradient(logits, actions, advantages):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)
        return -jnp.mean(chosen[:, 0] * advantages)

    def policy_gradient_backward(saved, ct):
        (logits, actions, advantages), _ = saved
        scored = jnp.zeros_like(actions) if faulty else actions
        done = jax.nn.one_hot(scored, logits.shape[-1], dtype=ct.dtype)
        slope = (jax.nn.softmax(logits) - done) * advantages[:, None]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)
        return ct * slope / len(actions), None, -ct * chosen[:, 0] / len(actions)

    surrogate = ruled(policy_gradient, policy_gradient_backward)

    def loss(params, states, actions, returns):
        hidden = jnp.tanh(states @ params["torso"])
        values = hidden @ params["critic"]
        advantages = lax.stop_gradient(returns - values)
        logits = hidden @ params["actor"]
        actor = surrogate(logits, actions, advantages)  # rule: policy loss
        return actor + optax.l2_loss(values, returns).mean()

    params = {
        "torso": normal(rng, 3, 4),
        "actor": normal(rng, 4, 3),
        "critic": normal(rng, 4),
    }
    actions = integers(rng, 3, (6,)).at[0].set(2)
    return Program(loss, params, (normal(rng, 6, 3), actions, normal(rng, 6)))
