"""A model shared out between a device and the processor: the first layers there, the rest here.

What passes from one to the other is the residual stream, some kilobytes a token; it waits for the device at each layer
that runs here, which is nothing beside what such a layer takes.
"""

from __future__ import annotations

from backends.interface import Backend, Operation, Wrapper


class Split(Wrapper):
    """A device that leaves layers to another backend.

    host     the backend of the layers that do not fit
    layers   how many, from the first, the device runs
    """

    def __init__(self, device: Backend, host: Backend, layers: int):
        super().__init__(device)
        self.host, self.layers = host, layers

    def at(self, layer: int) -> Backend:
        return self.inner if layer < self.layers else self.host

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        if self.at(settings.get("layer", 0)) is self.inner or operation.name != "decoder_layer":
            return super().run(operation, arrays, settings, door)
        x_TD, weights, tables = arrays
        out_TD = self.host.run(operation, (to_host(x_TD), weights, to_host(tables)), settings)
        return self.xp.asarray(out_TD)

    def __repr__(self):
        return f"<backend {self.name}: {self.layers} layers; the rest on {self.host!r}>"


def to_host(value):
    """NumPy arrays of a device's, in nested tuples and lists."""
    return type(value)(to_host(item) for item in value) if isinstance(value, (tuple, list)) else value.get()
