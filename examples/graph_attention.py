"""Which line is wrong? Graph attention with a slip in its softmax, then with a NaN.

Zachary's karate club: 34 members, their 78 ties, and whom each followed when the club
split; a 35th has no ties. The softmax over a member's ties has a hand-written backward
pass that sums over the wrong axis: the report names the rule and its line. Then all
scores of the 35th are minus infinity: the report names the line where the NaN is born.
With both fixed (everyone is tied to oneself), the gradient passes.

    python examples/graph_attention.py
    jaxcheck check examples/graph_attention.py:problem_wrong
    jaxcheck check examples/graph_attention.py:problem_nan
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxcheck

# Ties of each member to those before, W. W. Zachary, J. Anthropol. Res. 33 (1977) 452.
TIES = (
    "- 0 0,1 0,1,2 0 0 0,4,5 0,1,2,3 0,2 2 0,4,5 0 0,3 0,1,2,3 - - 5,6 0,1 - 0,1 - 0,1 "
    "- - - 23,24 - 2,23,24 2 23,26 1,8 0,24,25,28 2,8,14,15,18,20,22,23,29,30,31 "
    "8,9,13,14,15,18,19,20,22,23,26,27,28,29,30,31,32 -"
)
FOLLOWED_THE_TEACHER = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21]


def softmax(scores):
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def softmax_bwd(weights, g):
    mean = jnp.sum(weights * g, axis=-1, keepdims=True)
    return (weights * (g - mean),)


def softmax_bwd_wrong(weights, g):
    mean = jnp.sum(weights * g, axis=0, keepdims=True)  # the bug: axis=-1 is right
    return (weights * (g - mean),)


def club():
    """Who is tied to whom, and on which side each member was."""
    adjacency = np.zeros((35, 35), bool)
    for member, ties in enumerate(TIES.split()):
        others = [int(other) for other in ties.split(",") if other != "-"]
        adjacency[member, others] = adjacency[others, member] = True
    sides = np.where(np.isin(np.arange(35), FOLLOWED_THE_TEACHER), 1.0, -1.0)
    return jnp.asarray(adjacency), jnp.asarray(sides)


def init_params(key):
    shapes = {"kernel": (3, 4), "attention": (2, 4), "readout": (4,)}
    draws = zip(shapes.items(), jax.random.split(key, 3), strict=True)
    return {name: jax.random.normal(k, shape) for (name, shape), k in draws}


def problem(bwd=softmax_bwd, with_oneself=True):
    """The loss function, its parameters, and a graph: what ``check`` takes."""
    normalized = jax.custom_vjp(softmax)
    normalized.defvjp(lambda scores: (softmax(scores),) * 2, bwd)

    def loss_fn(params, features, tied, sides):
        nodes = features @ params["kernel"]
        ours, theirs = params["attention"] @ nodes.T
        scores = jax.nn.leaky_relu(ours[:, None] + theirs, 0.2)
        hidden = normalized(jnp.where(tied, scores, -jnp.inf)) @ nodes
        return jnp.mean((jnp.tanh(hidden) @ params["readout"] - sides) ** 2)

    adjacency, sides = club()
    features = jnp.stack([adjacency.mean(1), adjacency[0], adjacency[33]], axis=1)
    tied = adjacency | jnp.eye(35, dtype=bool) if with_oneself else adjacency
    return loss_fn, init_params(jax.random.key(0)), features, tied, sides


def problem_wrong():
    return problem(softmax_bwd_wrong)


def problem_nan():
    return problem(with_oneself=False)


def main():
    wrong = jaxcheck.check(*problem_wrong())
    print("With the planted bug", wrong, sep="\n\n", end="\n\n\n")
    nan = jaxcheck.check(*problem_nan())
    print("With a member without ties", nan, sep="\n\n", end="\n\n\n")
    right = jaxcheck.check(*problem())
    print("Fixed", right, sep="\n\n")

    assert [c.derivative for c in wrong.culprits] == ["softmax_bwd_wrong"]
    assert [c.primitive for c in nan.culprits] == ["sub"]
    assert right.passed


if __name__ == "__main__":
    main()
