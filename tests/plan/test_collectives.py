"""What devices say to each other, read from compiled programs of known content."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.plan.collectives import Collective, collectives
from jaxformer.sharding import MeshConfig, make_mesh

SIZE = 64 * 128 * 4


def compiled(function, out_spec, in_spec=P("fsdp")):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, in_spec))
    return jax.jit(mapped).lower(x).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "function", "spec", "bytes"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), P(), SIZE * 7 / 8),
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), P(), 2 * SIZE / 8 * 7 / 8),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), P("fsdp"), SIZE / 8 * 7 / 8),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True), P("fsdp"), SIZE / 8 * 7 / 8),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)]),
            P("fsdp"),
            SIZE / 8,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_brings_what_a_ring_would_bring(kind, function, spec, bytes):
    found = collectives(compiled(function, spec))
    assert found == [Collective(kind, 1, bytes)]


def test_what_stands_in_a_loop_counts_once_in_each_turn():
    def looped(x):
        def layer(x, _):
            return jnp.tanh(jax.lax.psum(x, "fsdp")), None

        def group(x, _):
            return jax.lax.scan(layer, x, None, length=5)[0], None

        return jax.lax.scan(group, x, None, length=3)[0]

    (found,) = collectives(compiled(looped, P("fsdp")))
    assert found == Collective("all-reduce", 15, 15 * 2 * SIZE / 8 * 7 / 8)


def test_those_that_share_a_channel_count_each():
    """jax gives one channel to all that a mapped function writes itself."""

    def twice(x):
        on = [(i, (i + 1) % 8) for i in range(8)]
        return jax.lax.ppermute(jnp.tanh(jax.lax.ppermute(x, "fsdp", on)), "fsdp", on)

    text = compiled(twice, P("fsdp"))
    assert text.count("channel_id=1,") == 2
    assert collectives(text) == [Collective("collective-permute", 2, 2 * SIZE / 8)]


def test_a_step_without_other_devices_says_nothing():
    text = jax.jit(lambda x: x @ x).lower(np.ones((4, 4), np.float32)).compile().as_text()
    assert collectives(text) == []


# As the TPU compiler writes: a loop that goes by twos from 1 to 7, a reduce-scatter within a fusion, one gathering
# spread over two fusions, groups by the axes of a mesh.
TPU = """
%all-reduce-scatter.1 (input.2: f32[512,64]) -> f32[64,64] {
  %input.2 = f32[512,64]{1,0} parameter(0)
  %all-reduce.3 = f32[512,64]{1,0} all-reduce(%input.2), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %slice.4 = f32[64,64]{1,0} dynamic-slice(%all-reduce.3)
}

%first (p: bf16[64,16]) -> bf16[512,16] {
  %p = bf16[64,16]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[512,16]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=8,'b'=2] {'a'}
}

%second (q: bf16[64,16]) -> bf16[512,16] {
  %q = bf16[64,16]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[512,16]{1,0} all-gather(%q), channel_id=7, replica_groups=mesh['a'=8,'b'=2] {'a'}
}

%cond (c: (f32[512,64], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(7)
  %c = (f32[512,64]{1,0}, u32[]) parameter(0)
  %n = u32[] get-tuple-element(%c), index=1
  ROOT %less = pred[] compare(%n, %constant.1), direction=LT
}

%body (b: (f32[512,64], u32[])) -> (f32[512,64], u32[]) {
  %constant.2 = u32[]{:T(128)} constant(2)
  %b = (f32[512,64]{1,0}, u32[]) parameter(0)
  %x = f32[512,64]{1,0} get-tuple-element(%b), index=0
  %m = u32[] get-tuple-element(%b), index=1
  %fusion.1 = f32[64,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %next = u32[]{:T(128)} add(%m, %constant.2)
  ROOT %both = (f32[512,64]{1,0}, u32[]) tuple(%x, %next)
}

ENTRY %main (x: f32[512,64], y: bf16[64,16]) -> bf16[512,16] {
  %x = f32[512,64]{1,0} parameter(0)
  %y = bf16[64,16]{1,0} parameter(1)
  %one = u32[]{:T(128)} constant(1)
  %start = (f32[512,64]{1,0}, u32[]) tuple(%x, %one)
  %while.1 = (f32[512,64]{1,0}, u32[]) while(%start), condition=%cond, body=%body
  %fusion.2 = bf16[512,16]{1,0} fusion(%y), kind=kCustom, calls=%first
  ROOT %fusion.3 = bf16[512,16]{1,0} fusion(%y), kind=kCustom, calls=%second
}
"""


def test_a_tpu_program_is_read_as_its_compiler_writes_it():
    assert collectives(TPU) == [
        Collective("reduce-scatter", 3, 3 * 512 * 64 * 4 * 7 / 8),
        Collective("all-gather", 1, 512 * 16 * 2 * 7 / 8),
    ]
