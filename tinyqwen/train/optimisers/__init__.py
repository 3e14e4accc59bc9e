"""Optimisers: functions of parameters, gradients and an explicit state, all of them trees {name: array}."""
