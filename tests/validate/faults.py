"""Faults that exporters really have, each planted alone."""

from __future__ import annotations

from tests.validate import faults_in_graph, faults_in_running, faults_in_weights

FAULTS = [*faults_in_graph.FAULTS, *faults_in_weights.FAULTS, *faults_in_running.FAULTS]
CASES = [(fault, recipe) for fault in FAULTS for recipe in fault.recipes]
