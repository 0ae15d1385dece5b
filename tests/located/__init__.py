"""Planted faults in real architectures, with their places, and models without any."""

from . import (
    faults_attention,
    faults_dense,
    faults_recurrent,
)

FAULTS = (
    *faults_dense.FAULTS,
    *faults_attention.FAULTS,
    *faults_recurrent.FAULTS,
)
