"""The training state, and the compiled step that changes it."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from stablesr_jax.compilation import compiler_options
from stablesr_jax.models.parameters import Params
from stablesr_jax.parallel import batched, platform, replicated
from stablesr_jax.training.config import OptimizerConfig, TrainConfig
from stablesr_jax.training.logged import Means
from stablesr_jax.training.randomness import keys_for, sample_keys
from stablesr_jax.training.stage import Batch, TrainedStage


class TrainState(flax.struct.PyTreeNode):
  """All that a checkpoint holds of a run. Frozen parameters are no part of it.

  Attributes:
    step: The number of batches seen, () int32.
    params: The trained parameters, float32.
    opt_state: The optimiser's state.
    ema: The parameters' moving average, or None.
    bad_steps: How many of the last steps in a row were not finite and changed nothing, () int32.
    skipped: The number of such steps in all, () int32.
  """

  step: jax.Array
  params: Params
  opt_state: optax.OptState
  ema: Params | None
  bad_steps: jax.Array
  skipped: jax.Array

  @property
  def averaged(self) -> Params:
    """What is validated and exported."""
    return self.params if self.ema is None else self.ema


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Linear growth, then constant or a cosine down to 0 at `steps`."""
  after = max(steps - config.warmup_steps, 1)
  main = (
    optax.cosine_decay_schedule(config.learning_rate, after)
    if config.schedule == "cosine"
    else optax.constant_schedule(config.learning_rate)
  )
  # The first update counts as one step of growth: a rate of 0 would waste it.
  grow = lambda step: config.learning_rate * (step + 1) / max(config.warmup_steps, 1)
  return optax.join_schedules([grow, main], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  # A state of the same structure with and without, so that a resumed run may change it.
  clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
  adamw = optax.adamw(learning_rate(config, steps), *config.betas, weight_decay=config.weight_decay)
  return optax.chain(clip, adamw)


def create(config: TrainConfig, params: Params) -> TrainState:
  """The state before the first step."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=params,
    opt_state=make_optimizer(config.optimizer, config.steps).init(params),
    ema=None if config.optimizer.ema_decay is None else jax.tree.map(jnp.copy, params),
    bad_steps=zero,
    skipped=zero,
  )


def shardings(config: TrainConfig, abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
  """Where each array of a state (in shapes alone) lies: everywhere, or with "fsdp" in parts along its longest axis."""

  def sharding(leaf: jax.ShapeDtypeStruct) -> jax.NamedSharding:
    divisible = [axis for axis, side in enumerate(leaf.shape) if side % mesh.size == 0]
    if config.sharding == "replicated" or not divisible or leaf.size < 2**14:  # small ones are not worth gathering
      return replicated(mesh)
    longest = max(divisible, key=lambda axis: leaf.shape[axis])
    return jax.NamedSharding(mesh, jax.P(*[None] * longest, "data"))

  return jax.tree.map(sharding, abstract)


def prepare(stage: TrainedStage, mesh: jax.sharding.Mesh, batch: Batch, keys: jax.Array) -> Batch:
  """The stage's `prepare`, each device on its own part of the batch: a loop over samples must not become global."""
  spec, keys = jax.P("data"), keys_for(keys, 0)
  return jax.shard_map(stage.prepare, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)(batch, keys)


def make_step(
  stage: TrainedStage, config: TrainConfig, mesh: jax.sharding.Mesh, state_shardings: TrainState
) -> jax.stages.Wrapped:
  """The jitted step: (state, frozen, batch) -> (state, means). The state given is used up."""
  optimizer = make_optimizer(config.optimizer, config.steps)
  parts = config.optimizer.accumulation

  def gradient(state: TrainState, frozen: Params, batch: Batch, keys: jax.Array) -> tuple[Params, Means]:
    return jax.grad(stage.loss, has_aux=True)(state.params, frozen, batch, keys, state.step)

  def accumulated(state: TrainState, frozen: Params, batch: Batch, keys: jax.Array) -> tuple[Params, Means]:
    if parts == 1:
      return gradient(state, frozen, batch, keys)
    # Part k has samples k, k + parts, ...: each device keeps its own.
    divided = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), (batch, keys))
    first = jax.tree.map(lambda a: a[0], divided)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, state, frozen, *first))
    add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(state, frozen, *part)), None)
    (grads, means), _ = jax.lax.scan(add, zeros, divided)
    return jax.tree.map(lambda g: g / parts, grads), means

  def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Means]:
    keys = sample_keys(config.seed, state.step, config.batch_size)
    keys = jax.lax.with_sharding_constraint(keys, batched(mesh))
    grads, means = accumulated(state, frozen, prepare(stage, mesh, batch, keys), keys)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(means["loss"][0])
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.optimizer.ema_decay is not None:
      decay = jnp.minimum(config.optimizer.ema_decay, (1 + state.step) / (10 + state.step))  # start values fade soon
      ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, params)
    changed = state.replace(params=params, opt_state=opt_state, ema=ema, bad_steps=jnp.zeros((), jnp.int32))
    same = state.replace(bad_steps=state.bad_steps + 1, skipped=state.skipped + 1)
    state = jax.tree.map(functools.partial(jnp.where, finite), changed, same)
    # What was not finite would hide all else in the mean.
    means = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), means)
    means["gradient_norm"] = (jnp.where(finite, norm, 0.0), finite.astype(jnp.float32))
    return state.replace(step=state.step + 1), means

  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(state_shardings, replicated(mesh), batched(mesh)),
    out_shardings=(state_shardings, replicated(mesh)),
    compiler_options=compiler_options(platform(mesh)),
  )
