"""What a test suite needs: asserts that raise with the report."""

from jaxcheck.testing.asserts import (
    assert_derivatives_correct,
    assert_gradients_correct,
)

__all__ = ["assert_derivatives_correct", "assert_gradients_correct"]
