"""The survey tells wrong from right on functions planted in a module of our own."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    results,
    survey,
    survey_distributions,
    survey_document,
    survey_recipes,
    survey_rows,
    survey_targets,
)


@jax.custom_jvp
def bad_tanh(x):
    return jnp.tanh(x)


bad_tanh.defjvp(
    lambda primals, tangents: (jnp.tanh(primals[0]), 1.01 * tangents[0]),
)


def good_tanh(x):
    return jnp.tanh(x)


def matrices_only(x, y):
    raise ValueError(f"no {x.shape} here")


def spin(x):
    return jnp.exp(1j * x)


def without_rule(x):
    return jax.pure_callback(np.sin, x, x)


def doubled(x):
    return 2 * x


MODULE = types.SimpleNamespace(
    bad_tanh=bad_tanh,
    good_tanh=good_tanh,
    tanh_again=good_tanh,
    matrices_only=matrices_only,
    spin=spin,
    without_rule=without_rule,
    floor_of=lambda x: x > 0,
    constants=jnp.eye,
    _private=doubled,
    Class=survey_recipes.Case,
)
TABLE = {
    "constants": "creates an array of constants",
    "good_tanh": (
        survey_recipes.of(survey_recipes.real(3)),
        survey_recipes.of(survey_recipes.complex_(2), label="complex"),
    ),
}
WANTED = {
    "planted.bad_tanh": "wrong",
    "planted.constants": "not differentiable",
    "planted.floor_of": "not differentiable",
    "planted.good_tanh": "correct",
    "planted.good_tanh [complex]": "correct",
    "planted.matrices_only": "not called",
    "planted.spin": "correct",
    "planted.tanh_again": "same function",
    "planted.without_rule": "grad raises",
}
ENVIRONMENT = {"versions": {"jax": "1.2.3"}, "device": "cpu", "platform": "cpu"}


def planted():
    modules = {"planted": (survey_targets.functions_of(MODULE), TABLE)}
    return list(survey_targets.targets(modules))


@pytest.fixture(scope="module")
def rows():
    found = {}
    assert survey.survey(planted(), found, lambda line: None)
    return found


def test_every_public_function_has_a_row_and_its_verdict(rows):
    assert {name: row["verdict"] for name, row in rows.items()} == WANTED


def test_rows_say_why(rows):
    assert "autodiff" in rows["planted.bad_tanh"]["reason"]
    assert "no (5,) here" in rows["planted.matrices_only"]["reason"]
    assert rows["planted.floor_of"]["reason"] == "no floating output"
    assert rows["planted.tanh_again"]["reason"] == "planted.good_tanh"
    assert "Pure callbacks" in rows["planted.without_rule"]["reason"]


@pytest.mark.slow
def test_bound_of_a_right_gradient_is_small(rows):
    assert 0 < rows["planted.good_tanh"]["bound"] < 1e-6


def test_document_counts_and_explains(rows, monkeypatch):
    remarks = {"planted.bad_tanh": "planted | on purpose"}
    monkeypatch.setattr(survey_document, "REMARKS", remarks)
    text = survey_document.document(list(rows.values()), ENVIRONMENT, "the command")
    assert "jax 1.2.3" in text
    assert "Written by `the command`; not to be edited." in text
    assert "Otherwise" not in text
    assert "| planted | 3 | 1 | 1 | 1 | 2 | 1 | 9 |" in text
    wrong, _, not_called = text.split("## Correct, with")[0].splitlines()[-4:-1]
    assert wrong.startswith("| `planted.bad_tanh` | wrong | ")
    assert wrong.endswith("| planted \\| on purpose |")
    assert not_called.startswith("| `planted.matrices_only` | not called | ValueError")
    listing = text.split("## Everything")[1]
    for row in rows.values():
        assert f"`{survey_rows.title('', row['function'], row['case'])[1:]}`" in listing


def test_document_says_what_is_otherwise_elsewhere(rows):
    earlier = [dict(row) for row in rows.values() if row["function"] != "spin"]
    earlier[0]["verdict"] = "inconclusive"
    earlier.append(rows["planted.spin"] | {"function": "gone"})
    other = {"environment": {"versions": {"jax": "1.0"}}, "rows": earlier}
    text = survey_document.document(list(rows.values()), ENVIRONMENT, "it", other)
    section = text.split("## Otherwise than with jax 1.0")[1].split("##")[0]
    assert section.strip().splitlines()[2:] == [
        "| `planted.bad_tanh` | inconclusive | wrong |",
        "| `planted.spin` | – | correct |",
        "| `planted.gone` | correct | – |",
    ]


def test_only_results_of_the_same_versions_are_resumed(rows, tmp_path):
    said = []
    resume = functools.partial(survey.resumed, tmp_path, "survey")
    assert resume(ENVIRONMENT, said.append) == {}
    assert said.pop() == f"nothing to resume: no survey-*.json in {tmp_path}"

    results.write(tmp_path, "survey", ENVIRONMENT, {}, list(rows.values()))
    assert resume(ENVIRONMENT, said.append) == rows
    assert not said

    newer = ENVIRONMENT | {"versions": {"jax": "1.2.4", "numpyro": "0.1"}}
    assert resume(newer, said.append) == {}
    assert said == [
        "nothing to resume: survey-cpu.json is of jax 1.2.3 (here 1.2.4), "
        "numpyro none (here 0.1)"
    ]


def test_a_part_of_the_survey_has_results_of_its_own():
    whole = survey.name_of(None, "")
    parts = [
        survey.name_of(["numpyro.distributions", "distrax"], ""),
        survey.name_of(["distrax"], ""),
        survey.name_of(["distrax"], "Normal"),
        survey.name_of(None, "Normal"),
    ]
    assert whole == f"survey-jax-{jax.__version__}"
    assert parts[0] == f"survey-numpyro-distributions-distrax-jax-{jax.__version__}"
    assert len({whole, *parts}) == 5


@jax.custom_jvp
def bad_identity(x):
    return x


bad_identity.defjvp(lambda primals, tangents: (primals[0], 1.01 * tangents[0]))


class Bell:
    """A distribution of our own, whose derivative in the value may be wrong."""

    def __init__(self, loc, seen=lambda value: value):
        self.loc, self.seen = loc, seen

    def sample(self, key):
        return self.loc + jax.random.normal(key)

    def log_prob(self, value):
        return -((self.seen(value) - self.loc) ** 2) / 2


def bell(**settings):
    return survey_distributions.Recipe({"loc": [0.3, 0.7]}, **settings)


WRONG_IN_VALUE = survey_distributions.with_(seen=bad_identity)


@pytest.mark.parametrize(
    ("recipe", "verdict", "parameters"),
    [
        (bell(), "correct", 4),
        (bell(make=WRONG_IN_VALUE), "wrong", 4),
        (bell(make=WRONG_IN_VALUE, at=[0.9, 1.3]), "wrong", 4),
        (bell(make=WRONG_IN_VALUE, in_value=False), "correct", 2),
        (bell(make=lambda cls, loc: cls(bad_identity(loc)), at=[2, 3]), "wrong", 2),
    ],
)
def test_log_probability_in_parameters_and_continuous_value(
    recipe, verdict, parameters
):
    row = survey.examine(survey_targets.Target("planted", "Bell", Bell, recipe.case()))
    assert (row["verdict"], row["parameters"]) == (verdict, parameters)
    if verdict == "wrong":
        wrong = "value" if recipe.make is WRONG_IN_VALUE else "loc"
        assert f"['{wrong}']" in row["reason"]


def test_what_was_interrupted_is_kept_and_not_done_again(rows, monkeypatch):
    examined = []

    def examine(target):
        if target.function == "constants":
            raise KeyboardInterrupt
        examined.append(target.function)
        return {"verdict": "correct"}

    monkeypatch.setattr(survey, "examine", examine)
    found = {}
    assert not survey.survey(planted(), found, lambda line: None)
    assert not survey.survey(planted(), found, lambda line: None)
    assert examined == ["bad_tanh"]
    assert list(found) == ["planted.bad_tanh"]


def test_rows_are_saved_on_the_way(monkeypatch):
    monkeypatch.setattr(survey, "examine", lambda target: {"verdict": "correct"})
    monkeypatch.setattr(survey, "SAVE_EVERY", 2)
    todo = list(
        survey_targets.targets(
            {"planted": (survey_targets.functions_of(MODULE), TABLE)}
        )
    )
    found, saved = {}, []
    done = survey.survey(
        todo, found, lambda line: None, lambda: saved.append(len(found))
    )
    assert done
    assert saved == [2, 4, 6, 8]


def test_weights_see_real_and_imaginary_parts_and_no_integers():
    outputs = {"z": np.array([1 + 2j, 3j], np.complex64), "n": np.array([7])}
    total = survey.weighted_sum(outputs, 0)
    assert total.dtype == jnp.float32
    for part in (1.0, 1.0j):
        moved = {**outputs, "z": outputs["z"] + np.complex64(part)}
        assert abs(survey.weighted_sum(moved, 0) - total) > 1e-3
    assert survey.weighted_sum({**outputs, "n": np.array([8])}, 0) == total


def test_everything_named_in_a_recipe_exists():
    modules = survey_targets.surveyed()
    for module, (functions, table) in modules.items():
        assert not table.keys() - functions.keys(), module
    titles = [target.title for target in survey_targets.targets(modules)]
    assert len(titles) == len(set(titles))
