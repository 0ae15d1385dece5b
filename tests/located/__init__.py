"""Planted faults in real architectures, with their places, and models without any."""

from . import (
    faults_algebra,
    faults_attention,
    faults_convolution,
    faults_dense,
    faults_graphs,
    faults_implicit,
    faults_kernels,
    faults_losses,
    faults_recurrent,
    models_learning,
    models_science,
    models_sequences,
    models_vision,
)

FAULTS = (
    *faults_dense.FAULTS,
    *faults_losses.FAULTS,
    *faults_convolution.FAULTS,
    *faults_attention.FAULTS,
    *faults_recurrent.FAULTS,
    *faults_implicit.FAULTS,
    *faults_algebra.FAULTS,
    *faults_graphs.FAULTS,
    *faults_kernels.FAULTS,
)
MODELS = (
    *models_vision.MODELS,
    *models_sequences.MODELS,
    *models_learning.MODELS,
    *models_science.MODELS,
)
