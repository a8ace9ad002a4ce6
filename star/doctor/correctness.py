"""What must be right whatever the speed: kernel, maps, adapter, first ratio, gradients."""

import math
from typing import Any

import torch
from torch import Tensor

from star.doctor.findings import Finding, Result
from star.doctor.measure import seconds
from star.doctor.random_weights import sharing
from star.doctor.subject import Subject
from star.method.attention import (
    LOG_SUM_EXP_KERNELS,
    CoreKeys,
    Kernel,
    one_hot_attention,
    plain_attention,
    record_core_attention,
    use_joint_processor,
)
from star.method.precision import AUTOCAST_DTYPES
from star.policy.sd3 import SD3Policy
from star.system.errors import StarError
from star.training.trainer import Trainer

# Of the masses, relative to their root mean square. The plain kernel rounds as the probabilities
# are: in bf16 0.003 to 0.014 (a block of the miniature). The others round in TF32 at most.
MAP_ERROR, PLAIN_ERROR = 0.01, 0.03
EPSILON = 1e-8  # AdamW's, by which a gradient's root mean square is not to be drowned
LETTING_GO = 'report it with --output\'s file; until then set model.precision to bf16 or to "no"'


def exact_mass(query: Tensor, key: Tensor, core: Tensor, image_tokens: int) -> Tensor:
    """Return the mass of a `Kernel`, (rows, image tokens, C), by a softmax in float64."""
    rows = []
    for q, k, index in zip(query[-len(core) :], key[-len(core) :], core, strict=True):
        scores = q[:, :image_tokens].double() @ k.double().transpose(1, 2)
        probability = (scores / math.sqrt(q.shape[2])).softmax(-1)
        rows.append(probability[..., index].mean(0))
    return torch.stack(rows)


def error_of(mass: Tensor, exact: Tensor) -> float:
    """Return the root mean square of the error over that of the exact values."""
    return float((mass.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _allowed(policy: SD3Policy) -> float:
    return PLAIN_ERROR if policy.attention_kernel == "plain" else MAP_ERROR


def check_kernel(subject: Subject, found: dict) -> Result:
    """Time each attention kernel on the real shapes, and compare its mass with the exact one."""
    policy, device = subject.trainer().policy, subject.device
    tokens = policy.locations + sum(policy.text_lengths)
    config = policy.transformer.config
    dtype = AUTOCAST_DTYPES.get(policy.model.precision, torch.float32)
    kernels: dict[str, Kernel] = dict(LOG_SUM_EXP_KERNELS.get(device.type, {}))
    kernels |= {"one_hot": one_hot_attention}
    if device.type == "cpu":
        kernels["plain"] = plain_attention
    shape = 3, subject.sizes.images, config.num_attention_heads, tokens, config.attention_head_dim
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    figures: dict[str, Any] = {"chosen": policy.attention_kernel, "tokens": tokens, "kernels": {}}
    told = []
    for name, kernel in kernels.items():
        try:
            figures["kernels"][name] = tried = _try_kernel(kernel, given, policy.locations)
            told.append(f"{name} {1e3 * tried['seconds']:.2g} ms, off {tried['error']:.1g}")
        except (RuntimeError, NotImplementedError) as error:
            figures["kernels"][name] = {"failed": str(error).partition("\n")[0]}
            told.append(f"{name} fails")
    mine = figures["kernels"][policy.attention_kernel].get("error", math.inf)
    wrong = "" if mine < _allowed(policy) else f"its maps are off by {mine:.2g}; {LETTING_GO}"
    told_by = "; ".join(told)
    value = f"{policy.attention_kernel} for {tokens} tokens (forward, backward: {told_by})"
    return [Finding("attention", value, wrong)], figures


def _try_kernel(kernel: Kernel, given: Tensor, image_tokens: int) -> dict[str, float]:
    """Return the seconds of a forward and backward pass, and the error of the mass."""
    query, key, value = (part.detach().requires_grad_() for part in given)
    core = torch.tensor([[image_tokens + 3, image_tokens + 4]], device=given.device)

    def work() -> None:
        mixed, _ = kernel(query, key, value, None, image_tokens)
        torch.autograd.grad(mixed, query, mixed)[0].sum().item()  # waits for the device

    _, mass = kernel(query, key, value, core, image_tokens)
    assert mass is not None
    exact = exact_mass(query.detach(), key.detach(), core, image_tokens)
    return {
        "seconds": min([seconds(work) for _ in range(5)][1:]),
        "error": error_of(mass.detach(), exact),
    }


@torch.no_grad()
def check_maps(subject: Subject, found: dict) -> Result:
    """Compare the mass that a forward pass records in each block with a float64 softmax."""
    run = subject.trainer()
    policy, errors = run.policy, []
    kernel = policy.transformer.transformer_blocks[0].attn.processor.kernel

    def compared(q: Tensor, k: Tensor, v: Tensor, core: Tensor | None, image_tokens: int) -> Any:
        mixed, mass = kernel(q, k, v, core, image_tokens)
        if core is not None:
            errors.append(error_of(mass, exact_mass(q, k, core, image_tokens)))
        return mixed, mass

    use_joint_processor(policy.transformer, compared)
    x, time, conditioning = _input(subject, run)
    records = run.plan.batches(0)[0].records[: len(x)]
    core = run.credit.core_keys(records, clause_wise=False)
    core = CoreKeys(core.index.to(policy.device), core.weight.to(policy.device))
    with record_core_attention(policy.transformer, core, "all"):
        policy.velocity(x, time, conditioning)
    worst = max(errors)
    allowed = _allowed(policy)
    wrong = "" if worst < allowed else f"more than {allowed:g}; {LETTING_GO}"
    value = f"{len(errors)} blocks against a float64 softmax: off by {worst:.2g} at most (relative)"
    return [Finding("maps", value, wrong)], {"errors": errors}


@torch.no_grad()
def check_adapter(subject: Subject, found: dict) -> Result:
    """Compare the base model with a moved adapter that is switched off; on, it must differ."""
    run = subject.trainer()
    for parameter in run.parameters:
        parameter.add_(torch.full_like(parameter, 0.01))
    x, time, conditioning = _input(subject, run)
    on = run.policy.velocity(x, time, conditioning)
    with run.policy.reference():
        off = run.policy.velocity(x, time, conditioning)
    pipe = sharing(subject.pipe(run.policy.model.precision))
    plain = SD3Policy(pipe, run.policy.model, subject.device)
    plain.prompts = run.policy.prompts
    base = plain.velocity(x, time, conditioning)
    difference, moved = float((off - base).abs().max()), float((on - base).abs().max())
    wrong = "" if difference == 0 else "the KL would be of another model; report it"
    if not moved > 0:
        wrong = "an adapter that changes nothing cannot learn; report it"
    value = f"off, it is off the base by {difference:.2g}; on, by {moved:.2g}"
    return [Finding("adapter", value, wrong)], {"off": difference, "on": moved}


def _input(subject: Subject, run: Trainer) -> tuple[Tensor, float, Any]:
    """Return noise, the first timestep, and the conditioning of two prompts."""
    batch = run.plan.batches(0)[0]
    prompts = [record.prompt for record in batch.records][:2]
    first = run.policy.schedule(subject.sizes.steps).timesteps[0]
    return run.policy.noise(batch.start_seeds[:2]), first, run.policy.encode(prompts)


def check_ratios(subject: Subject, found: dict) -> Result:
    """Look at the first ratio of an epoch in each precision; it must be 1 exactly."""
    errors: dict[str, float | None] = {}
    told, wrong, off = [], [], []
    for precision in ("bf16", "fp16", "no"):
        try:
            line = subject.trainer(precision=precision).train_epoch()
        except (StarError, RuntimeError) as error:  # the device has no such products
            errors[precision], reason = None, str(error).partition("\n")[0]
            off.append(Finding("ratios", precision, f"cannot run here ({reason})", needed=False))
            continue
        finally:
            subject.forget()
        errors[precision] = line.first_ratio_error
        told.append(f"{'float32' if precision == 'no' else precision} {line.first_ratio_error:g}")
        wrong += [precision] if line.first_ratio_error != 0 else []
    mend = f"not 1 in {', '.join(wrong)}: rollout and update differ; {LETTING_GO}" if wrong else ""
    value = f"first ratios are off 1 by: {', '.join(told)}"
    return [Finding("ratios", value, mend), *off], {"first_ratio_error": errors}


def check_gradients(subject: Subject, found: dict) -> Result:
    """Compare the root mean square of each element's gradient with Adam's epsilon."""
    run = subject.trainer()
    for _ in range(2):  # the first update leaves A's gradients at zero
        run.train_epoch()
    beta = run.optimizer.param_groups[0]["betas"][1]
    scale = 1 - beta**run.updates
    sizes = torch.cat(
        [
            (run.optimizer.state[p]["exp_avg_sq"] / scale).sqrt().flatten()
            for p in run.parameters
            if p in run.optimizer.state
        ]
    )
    if not len(sizes):
        mend = "each overflowed; fp16's loss scale needs more of them to fit"
        return [Finding("gradients", "no update was taken", mend, needed=False)], {}
    median, below = float(sizes.median()), float((sizes < EPSILON).float().mean())
    value = f"median {median:.2g}, {median / EPSILON:.2g} of Adam's epsilon; {below:.2%} below it"
    drowned = "the rate means less than it says; raise the loss's scale" if below > 0.1 else ""
    figures = {"median": median, "below_epsilon": below, "epsilon": EPSILON}
    return [Finding("gradients", value, drowned, needed=False)], figures
