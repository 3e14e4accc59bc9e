"""Where in the model an operation runs, for wrappers that want to say so: `layers.3.self_attn.q_proj`.

No block names its place. A name comes from the arguments: whoever gave the weights knows what each is called. An
operation without weights (rope, add) is named after the operation that it runs inside of.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.interface import Backend, Operation, Wrapper


class Places(Wrapper):
    """A wrapper that keeps `inside`: the paths of the operations that are running, outermost first.

    names   {id(object): name} of the arrays and trees that the model was given; a key (operation name, id) goes first,
            for an array that plays two parts
    """

    def __init__(self, inner: Backend, names: Mapping):
        super().__init__(inner)
        self.names = names
        self.inside: list[str] = []
        # Looked up for every operation, so prepared once: which operations have names of their own for an array.
        self._paths = {key: name.removesuffix(".weight").removesuffix(".bias") for key, name in names.items()}
        self._special = {key[0] for key in names if isinstance(key, tuple)}

    def place(self, operation: Operation, arrays: tuple) -> str:
        """What to call this operation here.

        >>> scale = Operation(lambda backend, x, weight: x * weight); scale.name = "scale"
        >>> weight = object()
        >>> places = Places(Backend(), {id(weight): "layers.0.norm.weight"})
        >>> places.place(scale, (1, weight)), places.place(scale, (1, 2))
        ('layers.0.norm', 'scale')
        """
        parent, paths = self.inside[-1] if self.inside else "", self._paths
        for array in arrays:
            path = paths.get(id(array))
            if path and operation.name in self._special:
                path = paths.get((operation.name, id(array)), path)
            if path and path != parent:
                return path
        return f"{parent}.{operation.name}" if parent else operation.name
