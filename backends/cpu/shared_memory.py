"""What threads need of the processor: words that several write at once, a clock, a nap, a call by address.

Each is an intrinsic for kernels; `team.py` is made of them.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def word(context, builder, signature, arguments):
    view = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(view.data, [arguments[1]])


@intrinsic
def read(typing, state, index):
    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(word(context, builder, signature, arguments), "acquire", 8)

    return types.int64(state, types.intp), codegen


@intrinsic
def write(typing, state, index, value):
    def codegen(context, builder, signature, arguments):
        builder.store_atomic(arguments[2], word(context, builder, signature, arguments), "release", 8)
        return context.get_dummy_value()

    return types.void(state, types.intp, types.int64), codegen


@intrinsic
def count(typing, state, index):
    """Add one, whoever else does so at the same time."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", word(context, builder, signature, arguments), ir.IntType(64)(1), "acq_rel")

    return types.int64(state, types.intp), codegen


@intrinsic
def change(typing, state, index, old, new):
    """Write the new value if the old one is still there, as one act; whether it was."""

    def codegen(context, builder, signature, arguments):
        place = word(context, builder, signature, arguments)
        return builder.extract_value(builder.cmpxchg(place, *arguments[2:], "acq_rel", "acquire"), 1)

    return types.boolean(state, types.intp, types.int64, types.int64), codegen


@intrinsic
def breathe(typing):
    """Tell the processor that this loop only waits."""
    hints = {"x86_64": ("llvm.x86.sse2.pause", []), "AMD64": ("llvm.x86.sse2.pause", [])}
    hints |= {
        "aarch64": ("llvm.aarch64.hint", [ir.IntType(32)(1)]),
        "arm64": ("llvm.aarch64.hint", [ir.IntType(32)(1)]),
    }

    def codegen(context, builder, signature, arguments):
        if platform.machine() in hints:
            name, given = hints[platform.machine()]
            kind = ir.FunctionType(ir.VoidType(), [number.type for number in given])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return types.void(), codegen


def system_call(name, *given):
    """An intrinsic that calls a function of the C library, with these numbers."""

    @intrinsic
    def call(typing):
        def codegen(context, builder, signature, arguments):
            if platform.system() != "Windows":  # which has no such functions
                numbers = [ir.IntType(32)(number) for number in given]
                kind = ir.FunctionType(ir.IntType(32), [number.type for number in numbers])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, name), numbers)
            return context.get_dummy_value()

        return types.void(), codegen

    return call


nap = system_call("usleep", 100)  # 0.1 ms, without Python's knowledge: its lock would have to be asked for on waking
give_way = system_call("sched_yield")  # to whoever wants this core


@intrinsic
def clock(typing):
    """Ticks of the processor's clock; how long one lasts differs between machines."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(64), [])
        if platform.machine() in ("aarch64", "arm64"):
            return builder.call(ir.InlineAsm(kind, "mrs $0, cntvct_el0", "=r", side_effect=True), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), codegen


ADDRESS = ir.IntType(8).as_pointer()
TASK_TYPE = ir.FunctionType(ir.VoidType(), [ADDRESS, ir.IntType(64), ir.IntType(64)])


@intrinsic
def as_task(typing, kernel, arguments):
    """Two addresses: of a plain function (arguments, first, last) that calls the kernel, and of the arguments.

    The arguments lie in the caller's frame, which stays until the job is done.
    """

    def codegen(context, builder, signature, given):
        kernel_type, tuple_type = signature.args
        called = kernel_type.get_call_type(context.typing_context, (types.intp, types.intp, *tuple_type.types), {})
        compiled = kernel_type.dispatcher.get_compile_result(called)
        context.add_linking_libs([compiled.library])

        memory = cgutils.alloca_once_value(builder, given[1])
        task = ir.Function(builder.module, TASK_TYPE, name=builder.module.get_unique_name("task"))
        task.linkage = "internal"
        inside = ir.IRBuilder(task.append_basic_block())
        values = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(task.args[0], memory.type)))
        context.call_internal_no_propagate(inside, compiled.fndesc, called, [*task.args[1:], *values])
        inside.ret_void()
        return cgutils.pack_array(builder, [builder.ptrtoint(each, ir.IntType(64)) for each in (task, memory)])

    return types.UniTuple(types.int64, 2)(kernel, arguments), codegen


@intrinsic
def run_task(typing, task, arguments, first, last):
    def codegen(context, builder, signature, given):
        function = builder.inttoptr(given[0], TASK_TYPE.as_pointer())
        builder.call(function, [builder.inttoptr(given[1], ADDRESS), *given[2:]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.intp, types.intp), codegen
