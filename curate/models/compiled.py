"""The layers through torch.compile, which fuses what stands between the matrix products.

The layers are compiled and not the model: they share one piece of code, so it is compiled once, in some ten seconds,
and not again for each of them.  The last layer stays as it is, for the hooks of ``last_mlp``.  What it brings stands in
``benchmarks/forward``: a few per cent in float32, about a tenth in bfloat16, on a CPU.
"""

from __future__ import annotations

from typing import Any

from curate.exceptions import ModelError


def compile_layers(torch: Any, base: Any, *, one_thread: bool) -> None:
    """Compile all layers of ``base`` but the last, in place, and run them once so that the time is spent here.

    Raises
    ------
    ModelError
        If the model has no list of layers, or the machine no compiler.
    """
    layers = getattr(base, "layers", None)
    if layers is None or len(layers) < 2:
        raise ModelError(f"compile was asked, but {type(base).__name__} has no list of layers; leave it out.")
    if one_thread:  # each thread runs batches of its own, so a kernel must not start more
        import torch._inductor.config as inductor

        inductor.cpp.threads = 1
    for layer in layers[:-1]:
        layer.compile(dynamic=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if one_thread else threads)
        with torch.inference_mode():
            for shape in ((2, 48), (3, 80)):  # a batch of one row has a shape of its own, compiled when it comes
                base(input_ids=torch.ones(shape, dtype=torch.long, device=base.device), use_cache=False)
    except Exception as error:  # whatever the compiler of the day trips over
        raise ModelError(
            f"compile was asked, but the layers cannot be compiled: {type(error).__name__}: {str(error)[:300]}. "
            "On a CPU it needs a C++ compiler (g++); or leave it out."
        ) from error
    finally:
        torch.set_num_threads(threads)
