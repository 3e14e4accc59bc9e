"""Weights in and out: model folders as Hugging Face publishes them, and how to fetch one.

    folder            open a folder as config and weights            save   write one
    safetensors_file  what one file says it holds, believed by none  hub    fetch one from the hub
    inventory         exactly the tensors that the config asks for, no more and no fewer
    loading           from stored bytes to arrays, once                          convert  one in another weight format
    quantised_file    how int8 and int4 lie in a file                            kept     and between two starts

Nothing here runs code out of a model folder, and nothing but `hub` touches the network.
"""

from tinyqwen.checkpoint.folder import Checkpoint, open_checkpoint
from tinyqwen.checkpoint.save import save_checkpoint

__all__ = ["Checkpoint", "open_checkpoint", "save_checkpoint"]
