"""Functions written in LLVM's language, as machine code of the processor that runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from llvmlite import binding, ir

_engines: Final[list[Any]] = []  # own the code
binding.initialize_native_target()
binding.initialize_native_asmprinter()


def compiled(module: ir.Module, name: str, *arguments: type[Any]) -> Callable[..., None]:
    """The function `name` of `module`, which takes `arguments` of these C types, returns nothing.

    It lives as long as the process. A call holds no lock of Python's.
    """
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    code = binding.parse_assembly(str(module))
    options = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(code, passes)
    engine = binding.create_mcjit_compiler(code, machine)
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, *arguments)(engine.get_function_address(name))
